#!/bin/bash
# example.sh: the example server gives each of several clients the tokens of the unsplit model.
set -u
area=example
source tests/claim.sh

# serves CLIENTS TOKENS
serves() {
  local said
  said=$(bindings/cpp/example/server $1 $2 2>&1)
  local status=$?
  echo "$said"
  [[ $status == 0 && $said == "$(($1 * $2)) tokens for $1 clients in "* ]]
}

claim one_client serves 1 12
claim clients_at_once serves 5 40
claim more_clients_than_a_batch_has_rows serves 20 3
count_claims
