#!/bin/bash
# install.sh: installs, and builds other people's projects against what was installed.
#
# Invariant: the projects are copied out of the tree first, and no file of the tree is read while
# they are built or run: every header, and the library that runs, lies in the prefix or in /usr.
set -u
area=install
source tests/claim.sh
tree=$PWD
out=$(realpath "${TEST_TMPDIR:-$(mktemp -d)}")
outside=$out/outside
prefix=$out/prefix
unset DESTDIR BUILD_WORKING_DIRECTORY CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH \
  LD_LIBRARY_PATH PKG_CONFIG_PATH CMAKE_PREFIX_PATH
warnings="-Wall -Wextra -pedantic -Werror"

install_to() { "$tree/install" --prefix "$@"; }

# same WANT COMMAND...: the command succeeds and prints just that.
same() {
  local said
  said=$("${@:2}") || { echo "$said" && echo "failed: ${*:2}" && return 1; }
  [ "$said" = "$1" ] || { echo "found: $said; expected: $1" && return 1; }
}

# says WORDS COMMAND...: the command fails, and what it says has the words in it.
says() {
  local said
  said=$("${@:2}" 2>&1) && echo "it did not fail: ${*:2}" && return 1
  [[ $said == *"$1"* ]] || { echo "found: $said; expected: $1" && return 1; }
}

# ---- What lies there ----

the_files() {
  cat << END
include/lamella.h
include/lamella.hpp
include/lamella/dlpack/dlpack.h
include/lamella_api.def
include/lamella_ops.def
include/lamella_pipeline.h
include/lamella_pipeline.hpp
lib/cmake/Lamella/LamellaConfig.cmake
lib/cmake/Lamella/LamellaConfigVersion.cmake
lib/liblamella.so
lib/liblamella.so.0
lib/liblamella.so.0.1.0
lib/pkgconfig/lamella.pc
share/doc/lamella/LICENSE
share/doc/lamella/README.md
share/doc/lamella/example/CMakeLists.txt
share/doc/lamella/example/main.cc
share/doc/lamella/example/pool.hpp
share/doc/lamella/example/server.hpp
END
  # the CUDA device, where nvcc was to build it with
  [ ! -e "$tree/abi/liblamella_cuda.so.0" ] || echo lib/liblamella_cuda.so.0
}

puts_there_what_help_names() {
  local printed files
  printed=$(install_to "$prefix") || return 1
  files=$(cd "$prefix" && find . ! -type d -printf '%P\n' | grep -v lamella/libdlpack-dev |
    LC_ALL=C sort)
  diff <(the_files | LC_ALL=C sort) <(echo "$files") || return 1
  diff <(echo "$printed" | sort) <(find "$prefix" ! -type d | sort) || return 1
  same liblamella.so.0.1.0 readlink "$prefix/lib/liblamella.so.0" &&
    same liblamella.so.0 readlink "$prefix/lib/liblamella.so" &&
    ! find "$prefix" -type f ! -perm 644 ! -perm 755 | grep .
}

names_neither_the_prefix_nor_the_tree() {
  ! grep -rl --exclude-dir=doc -e "$prefix" -e "$(realpath "$tree")" -e "$tree" "$prefix"
}

# A program that runs goes on with the file it has: the new library is another inode.
a_second_one_replaces_the_first() {
  local before
  local library=$prefix/lib/liblamella.so.0.1.0
  before=$(stat -c %i "$library") && exec 5< "$library" && install_to "$prefix" > $out/again &&
    [ "$before" != "$(stat -c %i "$library")" ]
}

destdir_is_put_before_the_prefix() {
  DESTDIR=$out/root install_to /opt/lamella > $out/staged &&
    cmp "$out/root/opt/lamella/lib/liblamella.so.0.1.0" "$prefix/lib/liblamella.so.0.1.0" &&
    ! grep -v "^$out/root/opt/lamella/" $out/staged
}

a_relative_prefix_is_where_the_user_is() {
  mkdir -p $out/here && BUILD_WORKING_DIRECTORY=$out/here install_to ../there/./x > $out/relative &&
    [ -e $out/there/x/include/lamella.h ] &&
    HOME=$out/home "$tree/install" --prefix='~/x' > $out/relative &&
    [ -e $out/home/x/include/lamella.h ]
}

# It opens the oneDNN that lies beside it.
libraries_come_along_and_are_used() {
  local full=$out/full
  install_to $full --with-libraries > $out/full.log || { cat $out/full.log; return 1; }
  same "" grep -L . $full/share/doc/lamella/{libdnnl2,libffi8,libgomp1}/copyright || return 1
  cd $outside && gcc -std=c11 $(at $full --cflags) plain.c -o full $(at $full --libs) \
    -Wl,-rpath,$full/lib || return 1
  LD_DEBUG=files ./full 2>&1 | sed -n 's/.*calling init: //p' > $out/opened
  grep -q "^$full/lib/libdnnl.so.2$" $out/opened &&
    grep -q "^$full/lib/libgomp.so.1$" $out/opened && grep -q "^$full/lib/libffi.so" $out/opened
}

# ---- Refusals ----

no_prefix() { says "--prefix DIR is needed" "$tree/install"; }
unknown_option() { says "--perfix is not known" "$tree/install" --perfix /tmp; }
value_is_missing() { says "--prefix needs a value" "$tree/install" --prefix; }
a_file_in_the_way() {
  echo > $out/file && says "$out/file is not a folder" install_to $out/file/lamella
}
libdir_outside() { says "expected a folder in the prefix" install_to $out/x --libdir ../lib; }
refuses_with_a_reason() {
  no_prefix && unknown_option && value_is_missing && a_file_in_the_way && libdir_outside
}

# Root may write anywhere, unless it gives up what makes it root.
as_others=()
[ "$(id -u)" != 0 ] || as_others=(setpriv --bounding-set -all)
no_permission_is_said_so() {
  mkdir -p $out/locked && chmod 555 $out/locked &&
    says "no permission to write to $out/locked" "${as_others[@]}" "$tree/install" \
      --prefix $out/locked/lamella
}

helps() { "$tree/install" --help | grep -q "bazel run //:install -- --prefix DIR"; }

# ---- Other people's projects ----

# Header names, one a line, of what a compiler was told to say with -M or a depfile.
headers() { tr ' \\' '\n\n' | grep '^/' | xargs -r realpath; }

# Every header is the system's, the prefix's or the project's own, and the prefix's were used.
only_installed() {
  local all=$out/headers
  headers > $all
  grep -q "^$1/include/lamella.h$" $all || { echo "lamella.h is not of $1"; return 1; }
  ! grep -v -e ^/usr/ -e "^$1/" -e "^$outside/" $all
}

runs_the_library_of() { ldd "$2" | grep -q "liblamella.so.0 => $(realpath "$1")/"; }

# at PREFIX: what pkg-config says there.
at() { PKG_CONFIG_PATH=$1/lib/pkgconfig pkg-config "${@:2}" lamella; }

c_with_pkg_config() {
  local flags libs
  flags=$(at "$1" --cflags) && libs=$(at "$1" --libs) && same 0.1.0 at "$1" --modversion || return 1
  cd $outside && gcc -std=c11 $warnings $flags plain.c -o plain $libs -Wl,-rpath,"$1/lib" &&
    gcc -std=c11 -M $flags plain.c | only_installed "$1" &&
    runs_the_library_of "$1" ./plain && same "1 8" ./plain
}

cpp_with_cmake() {
  rm -rf $out/built
  cmake -S $outside -B $out/built -DCMAKE_PREFIX_PATH="$1" > $out/cmake.log ||
    { cat $out/cmake.log; return 1; }
  cmake --build $out/built > $out/make.log || { cat $out/make.log; return 1; }
  cat $(find $out/built -name '*.d') | only_installed "$1" &&
    runs_the_library_of "$1" $out/built/modern &&
    same "1 0" $out/built/modern && same "1 8" $out/built/plain
}

cmake_refuses_another_version() {
  mkdir -p $out/other && cat > $out/other/CMakeLists.txt << END
cmake_minimum_required(VERSION 3.12)
project(other LANGUAGES C)
find_package(Lamella 1.0 REQUIRED)
END
  says "version: 0.1.0" cmake -S $out/other -B $out/other/built -DCMAKE_PREFIX_PATH=$prefix
}

the_example_is_built_and_serves() {
  cmake -S "$1/share/doc/lamella/example" -B $out/example -DCMAKE_PREFIX_PATH="$1" \
    -DCMAKE_CXX_FLAGS="$warnings" > $out/cmake.log || { cat $out/cmake.log; return 1; }
  cmake --build $out/example > $out/make.log || { cat $out/make.log; return 1; }
  $out/example/server 3 5 | grep "^15 tokens for 3 clients"
}

opened_at_run_time() {
  cd $outside && gcc -std=c11 $warnings -I"$1/include" -idirafter "$1/include/lamella" opened.c \
    -o opened -ldl && ! ldd ./opened | grep lamella &&
    same $'rank 0: 0F0 0F1 0B0 0B1\nrank 1: 1F0 1B0 1F1 1B1' ./opened "$1/lib/liblamella.so.0"
}

# A host's own dlpack.h is found before the one that was installed.
a_hosts_dlpack_comes_first() {
  mkdir -p $out/own/dlpack && cp "$prefix/include/lamella/dlpack/dlpack.h" $out/own/dlpack/
  cd $outside && gcc -M $(at $prefix --cflags) -I$out/own plain.c | grep -q $out/own/dlpack/dlpack.h
}

other_libdir() {
  local wide=$out/wide libs=lib/x86_64-linux-gnu
  install_to $wide --libdir $libs > $out/wide.log || return 1
  same $wide/include realpath "$(PKG_CONFIG_PATH=$wide/$libs/pkgconfig pkg-config \
    --variable=includedir lamella)" &&
    cmake -S $outside -B $out/wide_built -DLamella_DIR=$wide/$libs/cmake/Lamella > $out/cmake.log &&
    cmake --build $out/wide_built --target plain > $out/make.log && same "1 8" $out/wide_built/plain
}

claim puts_there_what_help_names puts_there_what_help_names
claim names_neither_the_prefix_nor_the_tree names_neither_the_prefix_nor_the_tree
claim a_second_one_replaces_the_first a_second_one_replaces_the_first
claim destdir_is_put_before_the_prefix destdir_is_put_before_the_prefix
claim a_relative_prefix_is_where_the_user_is a_relative_prefix_is_where_the_user_is
claim refuses_with_a_reason refuses_with_a_reason
if "${as_others[@]}" true 2> /dev/null; then
  claim no_permission_is_said_so no_permission_is_said_so
else
  skip no_permission_is_said_so "root cannot give up its rights here"
fi
claim helps helps
cp -rL "$tree/tests/bindings/install/outside" "$outside"
mv "$prefix" "$out/moved to" && mv "$out/moved to" "$out/moved" && prefix=$out/moved
claim_with pkg-config pkg-config a_moved_tree_serves_c_with_pkg_config c_with_pkg_config $prefix
claim_with pkg-config pkg-config a_hosts_dlpack_comes_first a_hosts_dlpack_comes_first
claim_with cmake cmake a_moved_tree_serves_cpp_with_cmake cpp_with_cmake $prefix
claim_with cmake cmake cmake_refuses_another_version cmake_refuses_another_version
claim_with pkg-config pkg-config libraries_come_along_and_are_used \
  libraries_come_along_and_are_used
claim_with cmake cmake libraries_may_lie_elsewhere other_libdir
claim_with cmake cmake the_example_is_built_and_serves the_example_is_built_and_serves $prefix
claim opened_at_run_time opened_at_run_time $prefix
count_claims
