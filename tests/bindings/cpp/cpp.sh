#!/bin/bash
# cpp.sh: compiles the C++ client as a host's own build would, with every compiler that is here, as
# C++17 and C++20, with exceptions and RTTI and without, and runs it.
#
# Invariant: only public headers and the shared object are used; a warning is an error.
set -u
area=cpp
source tests/claim.sh
here=tests/bindings/cpp
out=${TEST_TMPDIR:-$(mktemp -d)}
export LD_LIBRARY_PATH=abi
ln -sf "$PWD/abi/liblamella.so.0" "$out/liblamella.so"

flags="-Wall -Wextra -pedantic -Werror -Iabi -Ibindings/cpp"
returning="-DLAMELLA_RETURN_STATUS -fno-exceptions"

# build_and_run NAME COMPILER FLAGS [FLAGS_OF_SECOND]
build_and_run() {
  local main=$out/$1 compiler=$2 both=$3 second=${4-$3}
  $compiler $flags $second -c $here/second.cc -o $main.o &&
    $compiler $flags $both $here/client.cc $main.o -o $main -L$out -llamella && $main
}

# build_and_run as one test: no warning, and exit status 0.
client() {
  if command -v $2 > /dev/null; then
    claim "$1" build_and_run "$@"
  else
    skip "$1" "$2 is not installed"
  fi
}

# refused NAME COMPILER: no exceptions and no macro is said to be a mistake.
refused() {
  local said
  said=$($2 -std=c++17 $flags -fno-exceptions -fsyntax-only $here/second.cc 2>&1) && return 1
  [[ $said == *"lamella.hpp needs LAMELLA_RETURN_STATUS"* ]]
}

client gxx_throws g++ "-std=c++17 -fsanitize=address,undefined -fno-sanitize-recover=all"
client gxx_returns_status_cpp20 g++ "-std=c++20 -fno-rtti $returning"
client clangxx_throws_cpp20 clang++ "-std=c++20 -fno-rtti"
client clangxx_returns_status clang++ "-std=c++17 $returning"
client both_kinds_in_one_program g++ "-std=c++17" "-std=c++17 $returning"
claim without_exceptions_the_macro_is_asked_for refused _ g++
count_claims
