#!/bin/bash
# example.sh: the example server gives each of several clients the tokens of the unsplit model.
set -u
filter=${1:-}
server=bindings/cpp/example/server
n_passed=0 n_failed=0

# serves NAME CLIENTS TOKENS
serves() {
  local said
  [[ example.$1 == *"$filter"* ]] || return 0
  if said=$($server $2 $3 2>&1) && [[ $said == "$(($2 * $3)) tokens for $2 clients in "* ]]; then
    echo "ok example.$1"
    n_passed=$((n_passed + 1))
  else
    echo "$said"
    echo "FAIL example.$1"
    n_failed=$((n_failed + 1))
  fi
}

serves one_client 1 12
serves clients_at_once 5 40
serves more_clients_than_a_batch_has_rows 20 3
echo "$n_passed passed, $n_failed failed"
[ $n_failed -eq 0 ]
