"""What `./lamella test --gpu` and `./lamella bench --gpu` share: the packed folder, its programs, the card.

The folder is made by `./lamella pack-gpu`. It is a checkout's skeleton: the same commands, Python package
and GPU tests, with what was built beside them in bin/, so that they run where there is neither a
compiler nor a network. In a checkout, build/gpu is used.
Invariant: nothing here builds, installs or needs root.
Leaves what is run to gpu_test.py and gpu_bench.py.
"""

import datetime
import glob
import json
import os
import shutil
import subprocess
import sys

from bindings.cli.common import ROOT, Problem, say

STAMP = "packed.json"  # in the packed folder: commit and date
NO_GPU = 2  # exit status
OWN = "bindings/python/lamella/lib"
LIBRARIES = "libcublasLt.so.13", "libnccl.so.2"


def home():
    """The packed folder: this one, or the checkout's build/gpu."""
    for folder in (ROOT, ROOT / "build/gpu"):
        if (folder / STAMP).exists():
            return folder
    raise Problem("the programs for GPUs are not here: run ./lamella pack-gpu where nvcc is", NO_GPU)


def packed():
    return json.loads((home() / STAMP).read_text())


def python():
    """The first interpreter that has torch; else that of these commands."""
    ask = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    for name in [os.environ.get("LAMELLA_PYTHON"), shutil.which("python3"), sys.executable]:
        if name and subprocess.run([name, "-c", ask], capture_output=True).returncode == 0:
            return name
    return sys.executable


def cuda_libraries():
    """The folders with cuBLASLt and NCCL: the toolkit's, or torch's wheels', which keep each in another."""
    ask = "import importlib.util as u; print(*u.find_spec('nvidia').submodule_search_locations)"
    wheels = subprocess.run([python(), "-c", ask], capture_output=True, text=True).stdout.split()
    folders = ["/usr/local/cuda/lib64", *(f for w in wheels for f in glob.glob(w + "/*/lib"))]
    found = [next((f for f in folders if os.path.exists(os.path.join(f, name))), None) for name in LIBRARIES]
    return [*dict.fromkeys(filter(None, found))]


def libraries():
    """Folders with what our own files need, and with what CUDA's programs do."""
    return [str(home() / OWN), *cuda_libraries()]


def environment(**more):
    """For programs of the pack; results of the tests repeat by their seed. For hosts, host_libraries()."""
    path = [*libraries(), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    package = [str(home() / "bindings/python"), str(home() / "tests/gpu"), str(home())]
    before = filter(None, [os.environ.get("PYTHONPATH")])
    ours = dict(LAMELLA_TEST_DEVICE="cuda", LD_LIBRARY_PATH=":".join(path),
                PYTHONPATH=":".join([*package, *before]), PYTHONUNBUFFERED="1")
    return {**os.environ, **ours, **more}


def host_libraries():
    """Torch and JAX load the CUDA libraries that they were made for; a toolkit's, found first, would be mixed
    with them, and Lamella takes those that are in the process."""
    path = [str(home() / OWN), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": ":".join(path)}


def run(command, timeout, **more):
    """(status, what it printed); status 124: it did not end in time."""
    try:
        done = subprocess.run(list(map(str, command)), cwd=home(), env=environment(**more), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, errors="replace", timeout=timeout)
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        return 124, text.decode(errors="replace") if isinstance(text, bytes) else text
    return done.returncode, done.stdout


def card():
    """What the library says of the GPU; where there is none, one line and exit status 2."""
    status, text = run([home() / "bin/probe"], 120)
    words = text.strip().splitlines() or ["%s ended with status %d" % (home() / "bin/probe", status)]
    if status != 0:
        raise Problem("no GPU here that Lamella can use: " + words[-1], NO_GPU)
    return words[-1]


def is_standin(about):
    """Whether the card is the tests' own stand-in for CUDA."""
    return "stand-in" in about["card"]


def machine():
    """What figures are measured on, as bench.py's."""
    about = {"card": card(), "commit": packed()["commit"]}
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which(asked[0]):
        said = subprocess.run(asked, capture_output=True, text=True).stdout.strip().splitlines()
        about["nvidia-smi"] = said[0] if said else ""
    versions = "import torch, sys; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
    status, text = run([python(), "-c", versions], 120)
    about["hosts"] = text.strip().splitlines()[-1] if status == 0 else "no torch"
    about["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    if is_standin(about):
        say("this is the stand-in for CUDA: nothing of it runs on a GPU")
    return about


def keep(name, document):
    """Writes what was measured, for ./lamella gpu-results; says where."""
    folder = home() / "results"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(document, indent=1) + "\n")
    say("kept in %s" % path)
