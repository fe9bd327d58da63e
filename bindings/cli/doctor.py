"""lamella doctor: what this machine has that Lamella can use, what is missing, what installs it.

Invariant: looking changes nothing.
Leaves what an installed package looks for too, and showing it, to lamella.doctor.
"""

import glob
import os
import platform
import re
import shutil
import subprocess
import sys

from bindings.cli import headers, venv
from lamella import doctor
from lamella.doctor import Part, open_first

add_arguments = doctor.add_arguments


def main(args):
    return doctor.show(PARTS, args)


def output(*command):
    """A program's first words, stdout and stderr together; "" where it is not there or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def first_line(*command):
    return output(*command).split("\n")[0] or None


def find_bazel():
    if not shutil.which("bazel"):
        return None
    version = output("dpkg-query", "-W", "-f", "${Version}", "bazel-bootstrap")
    return "%s (Debian)" % version if version else first_line("bazel", "--version")


def find_dlpack():
    path = "/usr/include/dlpack/dlpack.h"
    if not os.path.exists(path):
        return None
    defines = dict(re.findall(r"#define (DLPACK_\w*VERSION) (\d+)", open(path).read()))
    if "DLPACK_MAJOR_VERSION" in defines:
        return "%s.%s" % (defines["DLPACK_MAJOR_VERSION"], defines["DLPACK_MINOR_VERSION"])
    old = int(defines.get("DLPACK_VERSION", "0"))  # 060 was read as 60: 0.6
    return "%d.%d" % (old // 100, old % 100 // 10)


def find_ffi():
    library, name = open_first(["libffi.so.8", "libffi.so.7"])
    headers = glob.glob("/usr/include/ffi.h") + glob.glob("/usr/include/*/ffi.h")
    if not library or not headers:
        return None
    version = re.search(r"libffi (\S+)", open(headers[0]).read())
    return "%s (%s)" % (version.group(1) if version else "unknown version", name)


def find_nvcc():
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    version = re.search(r"release ([\d.]+)", output(nvcc, "--version"))
    return "%s (%s)" % (version.group(1), nvcc) if version else None


def find_cublas_headers():
    """The toolkit's own, or those that setup took out of NVIDIA's wheel."""
    toolkit = headers.toolkit()
    if toolkit and (toolkit / "cublasLt.h").exists():
        return str(toolkit)
    wheels = venv.HOME.glob("lib/python*/site-packages/nvidia/*/include/cublasLt.h")
    return next((str(path.parent) for path in wheels), None)


def find_mpi():
    return first_line("mpirun", "--version") if shutil.which("mpicc") else None


def find_mpich():
    version = re.search(r"Version:\s+(\S+)", output("mpirun.mpich", "--version"))
    return version and version.group(1)


def find_module(name):
    """A Python package in .venv, or where the user's python3 sees it; it is not imported."""
    ask = "import importlib.metadata as m; print(m.version(%r))" % name
    for python in [venv.python(), os.environ.get("LAMELLA_PYTHON") or "python3"]:
        version = output(python, "-c", ask)
        if version:
            return "%s (%s)" % (version, shutil.which(python))
    return None


def clang():
    return first_line("clang", "--version")


def find_python():
    return "%s (%s)" % (platform.python_version(), sys.executable)


def find_dnnl():
    return doctor.describe_dnnl(*open_first(["libdnnl.so.3", "libdnnl.so.2"]))


SETUP = "./lamella setup"
TOOLKIT = "apt-get install cuda-toolkit-13-0, of NVIDIA's packages"
PARTS = [
    doctor.CPU,
    Part("gcc", "building", SETUP + " build", lambda: first_line("gcc", "--version")),
    Part("clang", "tests: the public header under a second compiler", SETUP + " test", clang),
    Part("bazel", "building", SETUP + " build", find_bazel),
    Part("python3", "the commands", "", find_python),
    Part(
        "oneDNN",
        "CPU matrix products; without it a plain C gemm is used",
        SETUP + " build",
        find_dnnl,
    ),
    Part("libffi", "foreign stage functions", SETUP + " build", find_ffi),
    Part("dlpack", "the tensor description", SETUP + " build", find_dlpack),
    Part(
        "abidiff",
        "tests: the ABI against its baseline",
        SETUP + " test",
        lambda: first_line("abidiff", "--version"),
    ),
    Part("MPI", "bench: the peer to compare with", SETUP + " bench", find_mpi),
    Part("MPICH", "tests: starting ranks", SETUP + " test", find_mpich),
    Part("nvcc", "building for NVIDIA GPUs", TOOLKIT, find_nvcc),
    Part("cuBLAS headers", "building for NVIDIA GPUs", SETUP + " gpu", find_cublas_headers),
    *doctor.GPUS,
    Part("torch", "host: PyTorch", SETUP + " test", lambda: find_module("torch")),
    Part("jax", "host: JAX", SETUP + " test", lambda: find_module("jax")),
    *(part for part in doctor.PARTS if part.name in ("torch ops", "jax ops")),
]
