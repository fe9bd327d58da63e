"""The demo's program for GPUs: built where nvcc is, or what ./lamella pack-gpu packed.

Invariant: a machine without a driver is told so in one line before anything is built; one with a
driver and no GPU, by the program.
Leaves what the program does there to cuda.c, runs to c_host.py and beside.py.
"""

import ctypes
import os
from pathlib import Path

from bindings.cli import bazel, gpu, headers
from bindings.cli.common import ROOT, Problem
from bindings.cli.demo import c_host

TARGET = "//bindings/cli/demo:lamella_demo_cuda"
BACKEND = "//abi:cuda"


def is_packed():
    return (ROOT / gpu.STAMP).exists()


def prepare(host):
    """A Problem where --device cuda cannot be had."""
    if host not in ("c", "torch"):
        raise Problem("--host %s --device cuda: the demo's stages in JAX stay on the CPU" % host, 2)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        why = "there is no NVIDIA driver (libcuda.so.1)"
        raise Problem("--device cuda: no GPU here: " + why, 2) from None
    if not is_packed() and not headers.toolkit():
        raise Problem("--device cuda: needs nvcc here, or a folder that ./lamella pack-gpu made", 2)


def build():
    """The program; its libraries are found from here on."""
    if is_packed():
        program, folders = ROOT / "bin/lamella_demo", gpu.libraries()
    else:
        program = c_host.build([BACKEND], TARGET)
        folders = [str(Path(bazel.info("bazel-bin")) / "abi"), *gpu.cuda_libraries()]
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [before])])
    return str(program)
