"""lamella pack-gpu: one folder that proves Lamella on a machine with a GPU.

It holds what was built here (the library, the CUDA device, adapters, test and bench programs, without
debugging information), the Python package and the commands. There it needs a driver, a CUDA 13 toolkit
or torch's wheels, and Python; no compiler, no network, no root:

    ./lamella pack-gpu        # here: build/gpu
    ./lamella test --gpu      # there, in the folder, or in a checkout with the folder in it
    ./lamella bench --gpu

Invariant: a folder that was made is whole and at most 60 MB.
"""

import json
import shutil
import subprocess
from pathlib import Path

from bindings.cli import bazel, gpu, packages
from bindings.cli.common import ROOT, Problem

MOST_BYTES = 60_000_000
BACKEND = "//kernels/cuda:liblamella_cuda.so.0"
PYTHON = ["bindings/cli/*.py", "bindings/cli/demo/*.py", "bindings/python/lamella/**/*.py", "tests/gpu/*.py",
          "tests/bindings/torch/torch_samples.py"]


def add_arguments(parser):
    parser.add_argument("--out", default=str(ROOT / "build/gpu"), metavar="DIR",
                        help="the folder (default: build/gpu); what was packed there before is replaced")


def main(args):
    packages.ensure("gpu")
    out = Path(args.out).resolve()
    if out.exists() and not (out / gpu.STAMP).exists():
        raise Problem("pack-gpu: %s is there and was not made by this command" % out, 2)
    programs = build()
    shutil.rmtree(out, ignore_errors=True)
    write(out, programs)
    total = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print("%s: %d programs, %.1f MB" % (out, len(programs), total / 1e6))
    if total > MOST_BYTES:
        raise Problem("pack-gpu: more than %d MB" % (MOST_BYTES / 1e6))
    return 0


def build():
    """{label: path} of the programs in tests/gpu, built with all that goes beside them."""
    from bindings.wheel.contents import TARGETS

    found = bazel.query('kind("cc_binary", //tests/gpu:all) + filter("lamella_cuda.so.0$", //kernels/cuda:all)')
    if BACKEND not in found:
        raise Problem("pack-gpu: needs nvcc and cuBLAS's headers; see ./lamella doctor")
    if bazel.build([*found, BACKEND, *TARGETS]) != 0:
        raise Problem("pack-gpu: it does not build")
    folder = ROOT / "bazel-bin"
    programs = [label for label in found if not label.endswith(".so.0")]
    return {label: folder / label.lstrip("/").replace(":", "/") for label in programs}


def write(out, programs):
    from bindings.wheel import contents

    built = [ROOT / "bazel-bin" / path for path in contents.TARGETS.values()]
    for path in [*built, *needed([*built, *programs.values()])]:
        put(out / "bindings/python/lamella/lib" / path.name, contents.stripped(path))
    for path in programs.values():
        place = "tests/" if path.name.endswith("_test") else ""
        put(out / "bin" / (place + path.name), contents.stripped(path))
    copy_sources(out)
    write_last(out)


def needed(paths):
    """Libraries that are not on every Linux system: libffi."""
    from bindings.wheel import contents

    names = {name for path in paths for name in contents.needed(path)}
    built = {"liblamella.so.0"}
    return [contents.library(n) for n in sorted(names - built) if not contents.SYSTEM.fullmatch(n)]


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)


def copy_sources(out):
    for path in [ROOT / "lamella", ROOT / "LICENSE", *(p for kind in PYTHON for p in ROOT.glob(kind))]:
        to = out / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to)


def write_last(out):
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    date = subprocess.run(["git", "log", "-1", "--format=%cs"], cwd=ROOT, capture_output=True, text=True)
    stamp = {"commit": commit, "date": date.stdout.strip()}
    (out / gpu.STAMP).write_text(json.dumps(stamp) + "\n")
