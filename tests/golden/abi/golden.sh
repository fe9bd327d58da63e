#!/bin/bash
# golden.sh: holds what the built library promises against the goldens in this folder.
#
#   golden.sh [filter]                    a test: `ok abi.claim` or `FAIL abi.claim` for each
#   bazel run //tests/golden/abi:update   writes the goldens anew, on purpose, into the tree
#
# Goldens: layout.txt (sizes and offsets of every public struct), ops.txt (every operator row),
# symbols.txt (exported symbols with their versions), lamella.abi (all public types, for abidiff).
# Before the first release a change of any is fine where it is meant; after it they only grow.
# update does not write needed.txt: a new dependency is added by hand.
# Invariant: a check runs on what was just built and fails on any difference.
set -u -o pipefail
area=abi
advice="if it is meant: bazel run //tests/golden/abi:update"
source tests/claim.sh
export LC_ALL=C
here=tests/golden/abi
library=abi/liblamella.so.0
adapters="bindings/torch/lamella_torch.so bindings/xla/liblamella_xla.so
  bindings/python/native/lamella_python.so"

make_layout() { $here/dump layout; }
make_ops() { $here/dump ops; }
make_symbols() {
  nm -D --defined-only --with-symbol-versions $library | awk '$2 ~ /[TD]/ {print $3}' | sort
}
make_abi() {
  abidw --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed --type-id-style hash \
    $here/surface.so |
    sed "s/soname='[^']*'/soname='liblamella.so.0'/"
}

same_as_golden() { diff -u $here/"$1".txt <(make_"$1"); }

# Every name of lamella_api.def is exported, and nothing else.
symbols_match_list() { diff -u <($here/dump functions | sort) <(make_symbols | sed 's/@.*//'); }

needs_only_the_allowed() {
  readelf -d $library | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort |
    comm -23 - $here/needed.txt | diff -u - /dev/null
}

is_called_liblamella() { readelf -d $library | grep -q '(SONAME).*\[liblamella.so.0\]'; }
stays_loaded() { readelf -d $library | grep -q 'FLAGS_1.*NODELETE'; }

# What would end the host's process, change its signals, or start threads or processes of our own.
not_the_librarys="exit|_exit|_Exit|quick_exit|abort|__assert_fail|raise|t?g?kill|pthread_kill\
|signal|sigaction|sigprocmask|pthread_sigmask|sigaltstack|pthread_create|fork|vfork|exec.*\
|posix_spawn.*|system|popen|setenv|putenv|unsetenv|setlocale|chdir|umask|longjmp|siglongjmp"
leaves_the_process_to_its_host() {
  local imported
  imported=$(nm -D --undefined-only "$1" | awk '{sub("@.*", "", $2); print $2}') || return 1
  [ -n "$imported" ] && ! grep -xE "$not_the_librarys" <<< "$imported"
}

same_abi() { abidiff --no-added-syms "$1" $library; }
same_abi_as_baseline() { same_abi $here/lamella.abi; }
# So that the check before it can be believed: a baseline where one field lies elsewhere must fail.
a_moved_field_is_found() {
  local moved=${TEST_TMPDIR:-/tmp}/moved.abi
  sed "/class-decl name='lam_call'/,/<.class-decl>/s/offset-in-bits='64'/offset-in-bits='704'/" \
    $here/lamella.abi > "$moved"
  cmp -s "$moved" $here/lamella.abi && echo "nothing to move in lamella.abi" && return 1
  ! same_abi "$moved"
}

check() {
  claim layout_is_the_golden same_as_golden layout
  claim operators_are_the_golden same_as_golden ops
  claim symbols_are_the_golden same_as_golden symbols
  claim symbols_are_those_of_the_list symbols_match_list
  claim needs_no_library_but_the_allowed needs_only_the_allowed
  claim has_its_soname is_called_liblamella
  claim stays_loaded stays_loaded
  claim leaves_the_process_to_its_host leaves_the_process_to_its_host $library
  for adapter in $adapters; do
    claim "$(basename "$adapter")_leaves_the_process_to_its_host" \
      leaves_the_process_to_its_host "$adapter"
  done
  claim_with abidiff abigail-tools types_are_those_of_the_baseline same_abi_as_baseline
  claim_with abidiff abigail-tools a_moved_field_is_found a_moved_field_is_found
  count_claims
}

update() {
  local to=${BUILD_WORKSPACE_DIRECTORY:?run it with bazel run}/tests/golden/abi kind
  for kind in layout ops symbols; do
    make_$kind > "$to/$kind.txt" && echo "wrote $to/$kind.txt"
  done
  make_abi > "$to/lamella.abi" && echo "wrote $to/lamella.abi"
}

case $filter in
  update) update ;;
  *) check ;;
esac
