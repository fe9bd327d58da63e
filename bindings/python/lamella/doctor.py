"""python -m lamella doctor: what Lamella finds here, what is missing, and what installs it.

A part is a function that looks for one thing and gives what it found, or None. Libraries are asked
themselves, through ctypes, as Lamella opens them; the hosts are not imported.
Invariant: looking changes nothing, and one broken part never hides the others.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from typing import Callable, NamedTuple

from lamella import errors, library

F32 = 2 | 32 << 8
TESTED = {"torch": "2.13.0", "jax": "0.10.2"}  # what the tests run with
CUDA_DIRS = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"]
LAUNCHERS = {  # whose variables groups are made from: (rank, size)
    "./lamella run": ("LAMELLA_RANK", "LAMELLA_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
}


class Part(NamedTuple):
    """One thing that is looked for."""

    name: str
    used_for: str
    install: str  # a command, or what to do; "" = nothing does
    find: Callable[[], "str | None"]


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def main(args):
    return show(PARTS, args)


def show(parts, args):
    rows = look(parts)
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


def look(parts):
    rows = []
    for part in parts:
        used_for = part.used_for
        try:
            found = part.find()
        except (OSError, ValueError, AttributeError, errors.Error, subprocess.SubprocessError) as e:
            found = None
            used_for += "; looking failed: %s" % e
        row = {"name": part.name, "found": found, "used_for": used_for, "install": part.install}
        rows.append(row)
    return rows


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


def find_library():
    return "%d.%d.%d (%s)" % (*library.version(), library.path(library.NAME))


def loaded(name):
    """The path of a library that this process has loaded; None where it has not."""
    found = re.search(r"\S*/%s\S*$" % re.escape(name), open("/proc/self/maps").read(), re.M)
    return found and found.group()


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
    """The copy that Lamella uses: it opens one when it needs it, as for a packed weight's size."""
    library.packed_cols(F32, 64, 64)
    path = loaded("libdnnl.so")
    return describe_dnnl(ctypes.CDLL(path), path) if path else None


def describe_dnnl(library, name):
    """Its version and the instruction set that it uses; library: None where there is none."""
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


def find_host(name):
    """A Python package, without importing it."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    same = version.partition("+")[0] == TESTED[name]
    return version if same else "%s (tested with %s)" % (version, TESTED[name])


def find_adapter(name):
    """What a host loads for our operators; that the host is there, only loading it tells."""
    try:
        return library.path(name)
    except errors.Error:
        return None


def find_launcher():
    """Whose ranks this process would be one of."""
    found = [
        "%s: rank %s of %s" % (who, os.environ[rank], os.environ.get(size, "?"))
        for who, (rank, size) in LAUNCHERS.items()
        if rank in os.environ
    ]
    return ", ".join(found) or None


def find_memory():
    """What tensors and the memory that ranks share can take."""
    about = dict(re.findall(r"(\w+):\s+(\d+) kB", open("/proc/meminfo").read()))
    shm = os.statvfs("/dev/shm")
    return "%.1f GB free; /dev/shm %.1f GB" % (
        int(about["MemAvailable"]) * 1024 / 1e9,
        shm.f_blocks * shm.f_frsize / 1e9,
    )


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


BUILD = "./lamella build, in a clone"
# A wheel's library is found where a host has loaded it, or by the loader.
WHEEL = "pip install '%s', its lib folder in LD_LIBRARY_PATH; CUDA's torch brings it"
DRIVER = "apt-get install cuda-drivers, of NVIDIA's packages, where there is a GPU"
CPU = Part("CPU", "everything", "", find_cpu)
GPUS = [
    Part("CUDA driver", "NVIDIA GPUs", DRIVER, find_driver),
    Part("GPU", "NVIDIA GPUs", "", find_gpus),
    Part(
        "CUDA device",
        "tensors on GPUs",
        BUILD + ", where nvcc is",
        lambda: find_adapter("liblamella_cuda.so.0"),
    ),
    Part("cuBLASLt", "GPU matrix products", WHEEL % "nvidia-cublas==13.*", find_cublaslt),
    Part("NCCL", "groups of GPUs", WHEEL % "nvidia-nccl-cu13", find_nccl),
]
PLAIN = "CPU matrix products; without it a plain C gemm is used"
PARTS = [
    Part("lamella", "everything", BUILD, find_library),
    CPU,
    Part("oneDNN", PLAIN, "apt-get install libdnnl2", find_dnnl),
    Part("memory", "groups", "", find_memory),
    Part("torch", "import lamella.torch", "pip install 'torch>=2.10'", lambda: find_host("torch")),
    Part("jax", "import lamella.jax", "pip install 'jax>=0.10'", lambda: find_host("jax")),
    Part("torch ops", "torch.ops.lamella", BUILD, lambda: find_adapter("lamella_torch.so")),
    Part("jax ops", "lamella.jax", BUILD, lambda: find_adapter("liblamella_xla.so")),
    Part("launcher", "Group.from_env; python -m lamella run starts ranks", "", find_launcher),
    *GPUS,
]
