#!/bin/bash
# clients.sh: compiles the clients as a host's own build would, with every compiler and DLPack that
# is here, and runs them.
#
# Invariant: only public headers and the shared object are used; a warning is an error.
# DLPack 0.6 is Debian's, 1.x is the one that torch carries; each is included by lamella.h, before it
# and after it.
set -u
area=clients
source tests/claim.sh
here=tests/bindings/clients
out=${TEST_TMPDIR:-$(mktemp -d)}
export LD_LIBRARY_PATH=abi
ln -sf "$PWD/abi/liblamella.so.0" "$out/liblamella.so"

warnings="-Wall -Wextra -pedantic -Werror"
dlpack1=../lamella_config/dlpack1
one="-I$dlpack1 -DDLPACK_IS_1"
dlpacks=("0.6:" "0.6_first:-DDLPACK_FIRST" "0.6_last:-DDLPACK_LAST"
  "1.x:$one" "1.x_first:$one -DDLPACK_FIRST" "1.x_last:$one -DDLPACK_LAST")

# build_and_run NAME COMPILER SOURCE FLAGS [ARGUMENTS]
build_and_run() {
  local program=$out/$1 compiler=$2 source=$here/$3 flags=$4
  shift 4
  $compiler $warnings $flags -Iabi $source -o $program -L$out -llamella -ldl && $program "$@"
}

# build_and_run as one test: no warning, and exit status 0.
client() {
  if ! command -v $2 > /dev/null; then
    skip "$1" "$2 is not installed"
  elif [[ $1 == *_1.x* && ! -e $dlpack1/dlpack/dlpack.h ]]; then
    skip "$1" "torch, which carries DLPack 1.x, is not here (./lamella setup test)"
  else
    claim "$1" build_and_run "$@"
  fi
}

# INITIALIZERS of client.h names those that the public headers define, all of them.
list_is_whole() {
  grep -oh "^#define LAM_[A-Z0-9_]*_INIT\b" abi/lamella.h abi/lamella_pipeline.h |
    sed "s/#define LAM_//; s/_INIT//" | sort > $out/defined
  grep -oh "^  X([A-Z0-9_]*," $here/client.h | sed "s/  X(//; s/,//" | sort > $out/listed
  [ -s $out/defined ] && diff $out/defined $out/listed
}

for dlpack in "${dlpacks[@]}"; do
  version=${dlpack%%:*} flags=${dlpack#*:}
  for c in gcc clang; do client c11_${c}_dlpack_$version $c client.c "-std=c11 $flags"; done
  for c in g++ clang++; do client cpp17_${c}_dlpack_$version $c client.cc "-std=c++17 $flags"; done
done
for c in gcc clang; do
  client dlopen_$c $c client_dlopen.c "-std=c11 -Wl,--as-needed" "$PWD/abi/liblamella.so.0"
done
claim every_initializer_is_tried list_is_whole
count_claims
