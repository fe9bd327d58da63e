"""The demo's --device cuda: what it says where there is no GPU; the whole of it on the stand-in for
CUDA, which is emulated. tests/gpu/demo_test.c compares numbers, and runs on a card, too."""

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from bindings.cli import headers, packages  # noqa: E402
from bindings.cli.common import Problem  # noqa: E402
from bindings.cli.demo import c_host, demo, on_gpu, workers  # noqa: E402

EMULATED = "//tests/bindings/demo:lamella_demo_emulated"
SMALL = ["--layers", "2", "--hidden", "32", "--micro-batches", "2", "--steps", "2"]
SMALL += ["--schedule", "layerwise"]


def has_driver():
    try:
        return bool(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return False


@pytest.mark.skipif(has_driver(), reason="there is a driver here: ./lamella test --gpu runs it")
@pytest.mark.parametrize("host", ["c", "torch"])
def test_without_a_gpu_one_line_says_so(host):
    command = [ROOT / "lamella", "demo", "--device", "cuda", "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("lamella: --device cuda: no GPU here: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_program_without_cuda_says_so():
    command = [c_host.build(), "--device", "cuda", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "lamella demo: --device cuda: this program was built without CUDA\n"


emulated = pytest.mark.skipif(not headers.all_there(), reason="no headers of CUDA and cuBLAS here")


@emulated
def test_the_whole_demo_runs_on_the_stand_in(monkeypatch, capsys, tmp_path):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    options = ["--device", "cuda", "--tp", "1", "--text", str(text), "--out", str(tmp_path)]
    monkeypatch.setattr(packages, "ensure", lambda command: None)
    monkeypatch.setattr(on_gpu, "prepare", lambda host: None)
    monkeypatch.setattr(on_gpu, "build", lambda: c_host.build(target=EMULATED))
    monkeypatch.setenv("LAMELLA_ALGORITHMS", "off")
    assert demo.main(parser.parse_args([*SMALL, *options])) == 0
    said = capsys.readouterr().out
    for expected in ("On GPUs: ", "2 workers  step 2/2", "1 worker on the CPU  step 2/2", ": PASS"):
        assert expected in said
    assert "Scaling" not in said
    trace = json.loads((tmp_path / "layerwise.json").read_text())
    paths = {e["args"]["path"] for e in trace["traceEvents"] if e["ph"] in "sf"}
    assert paths in ({"ipc"}, {"host"})


def workers_here():
    lists = map(read, Path("/proc/self/task").glob("*/children"))
    children = [int(child) for each in lists for child in each.split()]
    command = {child: read(Path("/proc/%d/cmdline" % child)) for child in children}
    return sorted(child for child in command if "lamella_demo_emulated" in command[child])


def read(path):
    """Nothing of a thread or a process that has ended meanwhile."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


@emulated
def test_a_killed_worker_ends_the_others_on_the_stand_in(monkeypatch):
    def kill(message):
        if message["step"] == 1:
            os.kill(workers_here()[1], signal.SIGKILL)

    monkeypatch.setenv("LAMELLA_ALGORITHMS", "off")
    options = [*SMALL, "--device", "cuda", "--sequence", "32", "--steps", "100000"]
    with pytest.raises(Problem) as problem:
        workers.run(c_host.build(target=EMULATED), options, 2, 1, kill)
    said = r"worker \d .* was killed by SIGKILL after step \d+; the others saw PEER_DEAD and ended"
    assert re.fullmatch(said, str(problem.value))
    assert workers_here() == []
