"""Headers of NVIDIA's libraries that a CUDA toolkit may lack, out of NVIDIA's own wheels.

Where nvcc is, the CUDA device is compiled against cuBLAS's headers and NCCL's; the libraries are opened
at run time and not needed here. A wheel is hundreds of megabytes, its headers less than one: it is
loaded into a folder that goes away, and include/ alone stays, in .venv, where .bazel/machine.bzl looks.
Invariant: .venv/headers.txt names what is there and is written last; without the headers the CUDA
device is left out of the build, and nothing else.
Leaves where nvcc comes from to the machine.
"""

import shutil
import subprocess
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path

from bindings.cli import venv
from bindings.cli.common import say

Wheel = namedtuple("Wheel", "name version header what")

TABLE = [
    Wheel("nvidia-cublas", "13.1.1.3", "cublasLt.h", "cuBLAS's headers"),
    Wheel("nvidia-nccl-cu13", "2.30.7", "nccl.h", "NCCL's headers"),
]
NEEDED_BY = {"all", "test", "bench", "gpu"}


def toolkit():
    """The include folder of nvcc's toolkit; None where there is no nvcc."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not nvcc:
        return None
    folders = [Path(nvcc).resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
    return next((f for f in folders if (f / "cuda_runtime_api.h").exists()), None)


def stamp():
    path = venv.HOME / "headers.txt"
    return path.read_text().splitlines() if path.exists() else []


def missing(command):
    """What the toolkit lacks and .venv has not got."""
    include = toolkit()
    if command not in NEEDED_BY or not include:
        return []
    lacking = [wheel for wheel in TABLE if not (include / wheel.header).exists()]
    return [wheel for wheel in lacking if venv.pin(wheel) not in stamp()]


def all_there():
    """Whether the CUDA device, and what stands in for one, can be compiled here."""
    return bool(toolkit()) and not missing("gpu")


def ensure(command):
    """Brings what `command` lacks. Gives the rows that were brought."""
    wheels = missing(command)
    if wheels and not (venv.HOME / "bin/python").exists():
        venv.create()
    return [wheel for wheel in wheels if bring(wheel)]


def bring(wheel):
    """Loads a wheel and keeps its headers. False: it could not be had."""
    say("loading %s %s for %s, once" % (wheel.name, wheel.version, wheel.what))
    options = "--no-deps --no-cache-dir --only-binary=:all: --disable-pip-version-check --no-input -q"
    with tempfile.TemporaryDirectory(dir=venv.HOME) as scratch:
        status, log = download([*options.split(), "-d", scratch, venv.pin(wheel)])
        if status != 0:
            say("  %s; the CUDA device is left out" % venv.explain(log))
            return False
        n, kept = unpack(next(Path(scratch).glob("*.whl")), site_packages())
    say("  kept %d files, %d kB, in .venv" % (n, kept // 1024))
    (venv.HOME / "headers.txt").write_text("\n".join([*stamp(), venv.pin(wheel)]) + "\n")
    return True


def download(arguments):
    done = subprocess.run([venv.python(), "-m", "pip", "download", *arguments], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def site_packages():
    return next((venv.HOME / "lib").glob("python*/site-packages"))


def unpack(path, folder):
    with zipfile.ZipFile(path) as wheel:
        files = [i for i in wheel.infolist() if "/include/" in i.filename and not i.is_dir()]
        wheel.extractall(folder, files)
    return len(files), sum(i.file_size for i in files)
