#!/bin/bash
# cpp.sh: compiles the C++ client as a host's own build would, with every compiler that is here, with
# exceptions and without, and runs it.
#
# Invariant: only public headers and the shared object are used; a warning is an error.
set -u
filter=${1:-}
here=tests/bindings/cpp
out=${TEST_TMPDIR:-$(mktemp -d)}
n_passed=0 n_failed=0
export LD_LIBRARY_PATH=abi
ln -sf "$PWD/abi/liblamella.so.0" "$out/liblamella.so"

flags="-std=c++17 -Wall -Wextra -pedantic -Werror -Iabi -Ibindings/cpp"

# build_and_run NAME COMPILER FLAGS
build_and_run() {
  $2 $flags $3 $here/client.cc $here/second.cc -o $out/$1 -L$out -llamella && $out/$1
}

# The same as one test: no warning, and exit status 0.
client() {
  local name=cpp.$1 compiler=$2 said
  case $name in *"$filter"*) ;; *) return ;; esac
  if ! command -v $compiler > /dev/null; then
    echo "skip $name: $compiler is not installed"
  elif said=$(build_and_run "$@" 2>&1); then
    echo "ok $name"
    n_passed=$((n_passed + 1))
  else
    echo "$said" | head -40
    echo "FAIL $name"
    n_failed=$((n_failed + 1))
  fi
}

for compiler in g++ clang++; do
  client ${compiler/++/xx}_throws $compiler ""
  client ${compiler/++/xx}_returns_status $compiler "-DLAMELLA_RETURN_STATUS -fno-exceptions"
done
echo "$n_passed passed, $n_failed failed"
[ $n_failed -eq 0 ]
