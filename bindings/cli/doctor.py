"""lamella doctor: what this machine has that Lamella can use, what is missing, what installs it.

Each row of PARTS is a function that looks for one thing and gives what it found, or None. Libraries
are asked themselves, through ctypes, as Lamella opens them.
Invariant: looking changes nothing, and one broken part never hides the others.
"""

import ctypes
import glob
import json
import os
import platform
import re
import shutil
import subprocess
import sys

from bindings.cli import venv

CUDA_DIRS = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"]


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def main(args):
    rows = look()
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print("%-*s  %s" % (width, row["name"], row["found"] or "not found (%s)" % row["used_for"]))
    wanted = [(row["name"], row["install"]) for row in rows if not row["found"] and row["install"]]
    if wanted:
        print("\nto install what is missing:")
    for name, command in wanted:
        print("  %-*s  %s" % (width, name, command))
    return 0


def look():
    rows = []
    for name, used_for, install, find in PARTS:
        try:
            found = find()
        except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
            found = None
            used_for += "; looking failed: %s" % error
        rows.append({"name": name, "found": found, "used_for": used_for, "install": install})
    return rows


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


def open_first(names, folders=()):
    """The first of these libraries that opens: by name as the loader finds it, then in folders."""
    for name in [
        *names,
        *(path for folder in folders for n in names for path in glob.glob(os.path.join(folder, n))),
    ]:
        try:
            return ctypes.CDLL(name), name
        except OSError:
            continue
    return None, None


def find_cpu():
    model = re.search(r"model name\s*:\s*(.*)", open("/proc/cpuinfo").read())
    return "%s, %d cores usable" % (
        model.group(1) if model else platform.machine(),
        len(os.sched_getaffinity(0)),
    )


def find_bazel():
    if not shutil.which("bazel"):
        return None
    version = output("dpkg-query", "-W", "-f", "${Version}", "bazel-bootstrap")
    return "%s (Debian)" % version if version else first_line("bazel", "--version")


# dnnl_cpu_isa_t; 0 is "all that there is", which the library resolves before it answers.
DNNL_ISAS = {
    0x1: "SSE4.1",
    0x3: "AVX",
    0x7: "AVX2",
    0x27: "AVX-512",
    0x67: "AVX-512 VNNI",
    0xE7: "AVX-512 bf16",
    0x1EF: "AVX-512 fp16",
    0x3E7: "AMX",
    0x3EF: "AMX",
    0xFEF: "AMX fp16",
    0x407: "AVX2 VNNI",
    0x40F: "AVX2 VNNI 2",
}


class DnnlVersion(ctypes.Structure):
    _fields_ = [("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int)]


def find_dnnl():
    library, name = open_first(["libdnnl.so.3", "libdnnl.so.2"])
    if not library:
        return None
    library.dnnl_version.restype = ctypes.POINTER(DnnlVersion)
    v = library.dnnl_version().contents
    isa = library.dnnl_get_effective_cpu_isa()
    return "%d.%d.%d (%s), instruction set %s" % (
        v.major,
        v.minor,
        v.patch,
        name,
        DNNL_ISAS.get(isa, hex(isa)),
    )


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


def find_driver():
    library, _ = open_first(["libcuda.so.1"])
    version = ctypes.c_int()
    if not library or library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return "for CUDA %d.%d" % (version.value // 1000, version.value % 1000 // 10)


def find_gpus():
    library, _ = open_first(["libcuda.so.1"])
    count = ctypes.c_int()
    if not library or library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None
    names = []
    for ordinal in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(96)
        library.cuDeviceGet(ctypes.byref(device), ordinal)
        library.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode())
    return ", ".join(names) or None


def find_cublaslt():
    library, name = open_first(["libcublasLt.so.13", "libcublasLt.so.12"], CUDA_DIRS)
    if not library:
        return None
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    v = library.cublasLtGetVersion()
    return "%d.%d.%d (%s)" % (v // 10000, v % 10000 // 100, v % 100, name)


def find_nccl():
    library, name = open_first(["libnccl.so.2"], CUDA_DIRS)
    version = ctypes.c_int()
    if not library or library.ncclGetVersion(ctypes.byref(version)) != 0:
        return None
    v = version.value
    return "%d.%d.%d (%s)" % (v // 10000, v % 10000 // 100, v % 100, name)


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


SETUP = "./lamella setup"
PARTS = [
    # name, what it is used for, command that installs it ("" = none that Lamella knows), finder
    ("CPU", "everything", "", find_cpu),
    ("gcc", "building", SETUP + " build", lambda: first_line("gcc", "--version")),
    ("clang", "tests: the public header under a second compiler", SETUP + " test", clang),
    ("bazel", "building", SETUP + " build", find_bazel),
    (
        "python3",
        "the commands",
        "",
        lambda: "%s (%s)" % (platform.python_version(), sys.executable),
    ),
    (
        "oneDNN",
        "CPU matrix products; without it a plain C gemm is used",
        SETUP + " build",
        find_dnnl,
    ),
    ("libffi", "foreign stage functions", SETUP + " build", find_ffi),
    ("dlpack", "the tensor description", SETUP + " build", find_dlpack),
    (
        "abidiff",
        "tests: the ABI against its baseline",
        SETUP + " test",
        lambda: first_line("abidiff", "--version"),
    ),
    ("MPI", "bench: the peer to compare with", SETUP + " bench", find_mpi),
    ("MPICH", "tests: starting ranks", SETUP + " test", find_mpich),
    ("nvcc", "building for NVIDIA GPUs", "", find_nvcc),
    ("CUDA driver", "NVIDIA GPUs", "", find_driver),
    ("GPU", "NVIDIA GPUs", "", find_gpus),
    ("cuBLASLt", "GPU matrix products", "", find_cublaslt),
    ("NCCL", "groups of GPUs", "", find_nccl),
    ("torch", "host: PyTorch", SETUP + " test", lambda: find_module("torch")),
    ("jax", "host: JAX", SETUP + " test", lambda: find_module("jax")),
]
