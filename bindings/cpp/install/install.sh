#!/bin/bash
# install.sh: copies what a host's build needs from this tree's build to a prefix.
#
#   bazel run //:install -- --prefix DIR      see usage below
#
# Invariant: nothing is written outside of the prefix (below DESTDIR, where that is set), and
# nothing that is written names it: the whole tree may be moved afterwards.
# Leaves building to Bazel, and oneDNN, which is opened when it is first used, to the machine.
set -u -e
PATH=/usr/bin:/bin:$PATH # before a "." in it, where this program is called as the one it uses

usage() {
  cat << END
usage: bazel run //:install -- --prefix DIR [--libdir NAME] [--with-libraries]

  --prefix DIR      where to; a relative one is relative to where you are
  --libdir NAME     the folder for libraries in it (lib); on Debian perhaps lib/x86_64-linux-gnu
  --with-libraries  also oneDNN, libffi and what they need, with their licences: for machines that
                    lack them, in a prefix of its own
  DESTDIR=ROOT      in the environment: write below ROOT, for packages

Puts there:
  include/          lamella.h and lamella_pipeline.h (C11), lamella.hpp (C++17), the operator
                    table, and in lamella/ a dlpack.h for hosts that bring none
  lib/              liblamella.so.$version with its links; where there was a CUDA toolkit to build it
                    with, liblamella_cuda.so.0; pkgconfig/lamella.pc; cmake/Lamella
  share/doc/lamella licences, README.md, and example/, a small inference server

For a prefix that needs root:  bazel build //:install && sudo bazel-bin/install --prefix /usr/local
END
}

# stop STATUS MESSAGE: 2 for wrong usage.
stop() {
  echo "install: $2" >&2
  exit "$1"
}

# ---- What is installed, and where it lies now ----

runfiles() {
  local folder
  for folder in "$0.runfiles/lamella" "$PWD"; do
    [ -e "$folder/abi/lamella.h" ] && echo "$folder" && return
  done
  stop 1 "its files are not beside it; start it by bazel run //:install"
}

# version_part NAME: of lamella.h.
version_part() { awk -v name="LAM_VERSION_$1" '$2 == name {print $3}' "$from/abi/lamella.h"; }

from=$(runfiles)
version=$(version_part MAJOR).$(version_part MINOR).$(version_part PATCH)
templates=$from/bindings/cpp/install
dlpack=/usr/include/dlpack/dlpack.h
dlpack_licence=/usr/share/doc/libdlpack-dev/copyright

# ---- Where to ----

prefix="" libdir=lib with_libraries=no
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --prefix=* | --libdir=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --with-libraries) with_libraries=yes && shift ;;
    --prefix | --libdir)
      [ -n "${2:-}" ] || stop 2 "$1 needs a value; --help tells more"
      case $1 in --prefix) prefix=$2 ;; --libdir) libdir=${2%/} ;; esac
      shift 2
      ;;
    *) stop 2 "$1 is not known; --help tells more" ;;
  esac
done
[ -n "$prefix" ] || stop 2 "--prefix DIR is needed; --help tells more"
case /$libdir/ in
  //* | */../* | */./*) stop 2 "--libdir is $libdir, expected a folder in the prefix" ;;
esac

# Bazel starts programs in a folder of its own, and tells where its user is; a shell leaves the ~ of
# --prefix=~/x as it is.
absolute() {
  case $1 in
    /*) echo "$1" ;;
    "~" | "~/"*) echo "$HOME${1#\~}" ;;
    *) echo "${BUILD_WORKING_DIRECTORY:-$PWD}/$1" ;;
  esac
}

prefix=$(realpath -ms "$(absolute "$prefix")")
root=${DESTDIR:+$(realpath -ms "$(absolute "$DESTDIR")")}
to=$root$prefix

# from the folders of lamella.pc and of LamellaConfig.cmake to the prefix
up=$(realpath -ms --relative-to="/$libdir/pkgconfig" /)

# ---- Writing ----

# writable FOLDER: it, or where it is not there yet the nearest above it, can be written to.
writable() {
  local folder=$1
  while [ ! -e "$folder" ]; do folder=$(dirname "$folder"); done
  [ -d "$folder" ] || stop 1 "$folder is not a folder"
  [ -w "$folder" ] ||
    stop 1 "no permission to write to $folder: choose another --prefix, or see --help"
}

# put MODE FILE... FOLDER
put() {
  local mode=$1 folder=$to/${*: -1} file
  install -d "$folder"
  for file in "${@:2:$#-2}"; do
    install -m "$mode" "$file" "$folder"
    echo "$folder/${file##*/}"
  done
}

# fill TEMPLATE FOLDER: the template without its .in, with this installation's words in it.
fill() {
  local file=$to/$2/${1%.in}
  install -d "$to/$2"
  sed "s|@VERSION@|$version|g; s|@MAJOR@|${version%%.*}|g; s|@LIBDIR@|$libdir|g; s|@UP@|$up|g" \
    "$templates/$1" > "$file"
  chmod 644 "$file"
  echo "$file"
}

link() {
  ln -sfn "$1" "$to/$libdir/$2"
  echo "$to/$libdir/$2"
}

put_library() {
  local soname=liblamella.so.${version%%.*}
  install -d "$to/$libdir"
  # never written in place: a program that runs keeps the file that it has open
  install -m 755 "$from/abi/$soname" "$to/$libdir/liblamella.so.$version"
  echo "$to/$libdir/liblamella.so.$version"
  link "liblamella.so.$version" "$soname"
  link "$soname" liblamella.so
  # where it was built: with a CUDA toolkit
  if [ -e "$from/abi/liblamella_cuda.so.0" ]; then
    put 755 "$from/abi/liblamella_cuda.so.0" "$libdir"
  fi
}

# ---- What it needs: as the machine has it, found beside the library at run time ----

# What every system with C++ programs has.
everywhere="/(ld-linux.*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))\.so\.[0-9]+$"

# Paths of oneDNN, which the library opens, and of all that it and the library link.
needed_libraries() {
  local onednn
  onednn=$(/sbin/ldconfig -p | awk '$1 == "libdnnl.so.2" {print $NF; exit}')
  [ -n "$onednn" ] || stop 1 "libdnnl.so.2 is not here (Debian: libdnnl2)"
  { echo "$onednn" && ldd "$onednn" "$from/abi/liblamella.so.0" | awk '$2 == "=>" {print $3}'; } |
    grep -vE "$everywhere" | sort -u
}

put_needed_libraries() {
  local file package
  for file in $(needed_libraries); do
    put 755 "$file" "$libdir"
    package=$(dpkg -S "$(realpath "$file")" 2> /dev/null | head -1 | cut -d: -f1)
    [ -n "$package" ] || stop 1 "$file is of no Debian package: its licence was not found"
    put 644 "/usr/share/doc/$package/copyright" "share/doc/lamella/$package"
  done
}

for folder in include "$libdir" share/doc; do writable "$to/$folder"; done
[ -e "$dlpack" ] || stop 1 "$dlpack is not here (Debian: libdlpack-dev)"
put 644 "$from"/abi/lamella{.h,_pipeline.h,_ops.def,_api.def} \
  "$from"/bindings/cpp/lamella{,_pipeline}.hpp include
put 644 "$dlpack" include/lamella/dlpack
put_library
[ $with_libraries = no ] || put_needed_libraries
fill lamella.pc.in "$libdir/pkgconfig"
fill LamellaConfig.cmake.in "$libdir/cmake/Lamella"
fill LamellaConfigVersion.cmake.in "$libdir/cmake/Lamella"
put 644 "$from"/{LICENSE,README.md} share/doc/lamella
put 644 "$from"/bindings/cpp/example/{CMakeLists.txt,main.cc,pool.hpp,server.hpp} \
  share/doc/lamella/example
if [ -e "$dlpack_licence" ]; then put 644 "$dlpack_licence" share/doc/lamella/libdlpack-dev; fi
