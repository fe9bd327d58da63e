# claim.sh: tests that are commands, to be sourced by a script: `ok area.name`, `FAIL area.name` or
# `skip area.name: why` for each, and the count at the end.
#
# The script sets `area` first, and `advice` where a failure has some; its first argument is the filter,
# part of the names of the tests that run.
# Invariant: what a command says is shown where it fails, and only there.
filter=${1:-}
n_passed=0 n_failed=0

wanted() { [[ $area.$1 == *"$filter"* ]]; }

# claim NAME COMMAND...: the command as one test.
claim() {
  local name=$1 said
  shift
  wanted "$name" || return 0
  if said=$("$@" 2>&1); then
    echo "ok $area.$name"
    n_passed=$((n_passed + 1))
  else
    echo "$said" | head -60
    echo "FAIL $area.$name${advice:+ ($advice)}"
    n_failed=$((n_failed + 1))
  fi
}

skip() { ! wanted "$1" || echo "skip $area.$1: $2"; }

# claim_with PROGRAM PACKAGE NAME COMMAND...: the same, where the program is here.
claim_with() {
  if command -v "$1" > /dev/null; then
    claim "${@:3}"
  else
    skip "$3" "no $1 (Debian: $2)"
  fi
}

count_claims() {
  echo "$n_passed passed, $n_failed failed"
  [ $n_failed -eq 0 ]
}
