"""The demo's other hosts beside the C one: losses and gradients that no host changes, mistakes,
workers that die."""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from bindings.cli import main, venv  # noqa: E402
from bindings.cli.common import Problem  # noqa: E402
from bindings.cli.demo import beside, c_host, demo, show, workers  # noqa: E402

# 3 heads, so that two tensor parts are uneven
SMALL = "--layers 3 --hidden 96 --micro-batches 4 --steps 3".split()

pytestmark = pytest.mark.skipif(bool(venv.missing("hosts")), reason="no .venv: ./lamella setup")


@pytest.fixture
def warm(monkeypatch, warm_python):
    """The hosts' workers need not load their host."""
    monkeypatch.setattr(venv, "python", lambda: warm_python)


def make(*options):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.make(parser.parse_args([*SMALL, *options]))


class Table:
    """What a run's two comparisons were of."""

    def __init__(self, monkeypatch):
        self.losses = self.gradients = None
        for name in ("losses", "gradients"):
            monkeypatch.setattr(show, name, self.keep(name, getattr(show, name)))

    def keep(self, name, function):
        def kept(*arguments):
            setattr(self, name, arguments)
            return function(*arguments)

        return kept


@pytest.mark.parametrize(
    "options, hosts",
    [
        ("--host torch", "PyTorch PyTorch PyTorch PyTorch"),
        ("--host jax --tp 1 --schedule zb-h1", "JAX JAX"),
        ("--host jax --pp 1 --dtype bf16", "JAX JAX"),
        ("--host mixed", "PyTorch JAX C"),
    ],
)
def test_losses_and_gradients_are_those_of_the_c_host(options, hosts, warm, monkeypatch, capsys):
    table = Table(monkeypatch)
    run = make(*options.split())
    assert run.run()
    ours, theirs, _, _ = table.losses
    assert len(ours) == len(theirs) == 3
    allowed = 1e-5 if run.plan["dtype"] == "f32" else 5e-3
    assert all(abs(a - b) <= allowed for a, b in zip(ours, theirs))
    told, names, _ = table.gradients
    assert sorted(told) == list(range(len(names))) and names == hosts.split()
    allowed = 3e-6 if run.plan["dtype"] == "f32" else 2e-2
    assert all(0 < one["difference"] <= allowed for one in told.values())
    out = capsys.readouterr().out
    assert len(re.findall(r"^  largest difference .*: PASS$", out, re.M)) == 2
    assert re.search(r"^  3 +\d\.\d{6} +\d\.\d{6} +\d\.\de-\d\d$", out, re.M)


def other_weights(self, pp, tp, extra, *rest):
    """The hosts start from those of another seed."""
    return START(self, pp, tp, [*extra, "--seed", "2"] if "--save" in extra else extra, *rest)


START = c_host.Demo.start


def test_another_host_that_differs_fails_the_demo(warm, monkeypatch, capsys):
    monkeypatch.setattr(c_host.Demo, "start", other_weights)
    options = [*SMALL, "--steps", "1", "--host", "torch", "--pp", "1", "--tp", "1"]
    assert main.main(["demo", *options]) == 1
    out = capsys.readouterr().out
    assert len(re.findall(r"^  largest difference .*: FAIL$", out, re.M)) == 2


@pytest.mark.parametrize(
    "ours, theirs, passed",
    [
        ([3.0, 2.0], [3.0, 2.00009], True),
        ([3.0, 2.0], [3.0, 2.0002], False),
        ([3.0, 2.0], [float("nan"), 2.0], False),
        ([3.0, 2.0], [3.0], False),
    ],
)
def test_every_step_counts(ours, theirs, passed):
    assert show.losses(ours, theirs, 1e-4, "torch") == passed


def test_every_worker_s_gradients_count():
    told = {0: {"difference": 1e-7, "weight": "a"}, 1: {"difference": 2e-5, "weight": "b"}}
    assert show.gradients(told, ["C", "C"], 1e-4)
    assert not show.gradients(told, ["C", "C"], 1e-5)
    assert not show.gradients({0: told[0]}, ["C", "C"], 1e-4)


def test_the_c_host_compares_gradients_too(tmp_path):
    program, file = c_host.build(), str(tmp_path / "gradients")
    options = [*SMALL, "--steps", "1"]
    workers.run(program, [*options, "--save-gradients", file], 1, 1)
    split = workers.run(program, [*options, "--check-gradients", file], 3, 2).gradients
    assert sorted(split) == list(range(6))
    assert all(0 < worker["difference"] < 3e-6 for worker in split.values())
    other = [*options, "--seed", "2", "--check-gradients", file]
    assert workers.run(program, other, 1, 1).gradients[0]["difference"] > 0.1
    cut = tmp_path / "cut"
    cut.write_bytes(Path(file).read_bytes()[:5000])
    for path, reason in [
        ("/nosuch", "--check-gradients /nosuch: No such file"),
        (str(Path(__file__)), "not a safetensors file"),
        (str(cut), "the file ends in layers.0.attention.qkv.weight"),
    ]:
        with pytest.raises(Problem, match=reason):
            workers.run(program, [*options, "--check-gradients", path], 1, 1)


@pytest.mark.parametrize(
    "options, reason",
    [
        ("--host keras", "argument --host: invalid choice: 'keras'"),
        ("--host mixed --pp 2", "--host mixed --pp 2: found 2 places, expected 3 or more"),
        ("--host torch --save m", "--save: the C host writes models; leave out --host"),
        ("--host torch --hidden 100", "--hidden: found 100, expected a multiple of 32"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(options, reason):
    command = [str(ROOT / "lamella"), "demo", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_what_is_missing_is_what_setup_installs(monkeypatch, tmp_path):
    monkeypatch.setattr(venv, "HOME", tmp_path)
    assert venv.missing("hosts") == venv.TABLE
    assert venv.missing("demo") == []  # the C host needs none of it


def children():
    """The workers that this test's process started, by rank."""
    me = os.getpid()
    threads = Path("/proc/%d/task" % me).iterdir()
    found = [int(pid) for t in threads for pid in (t / "children").read_text().split()]
    return sorted(pid for pid in found if b"LAMELLA_RANK" in environment(pid))


def environment(pid):
    """Empty of one that has ended meanwhile."""
    try:
        return Path("/proc/%d/environ" % pid).read_bytes()
    except OSError:
        return b""


def test_a_killed_worker_of_another_host_ends_the_demo_with_one_clear_line(monkeypatch, tmp_path):
    run = make("--host", "mixed", "--steps", "100000")
    run.write_start(tmp_path)
    step, killed = show.Progress.step, threading.Event()

    def kill_one(self, message):
        step(self, message)
        if self.done == 2 and not killed.is_set():
            killed.set()
            os.kill(children()[1], signal.SIGKILL)

    monkeypatch.setattr(show.Progress, "step", kill_one)
    with pytest.raises(Problem) as problem:
        run.train_hosts()
    assert re.fullmatch(
        r"worker 1 \(place 2, part 1\) was killed by SIGKILL after step \d+; "
        r"the others saw PEER_DEAD and ended",
        str(problem.value),
    )
    assert children() == []


class Failing:
    def forward(self, io):
        raise ValueError("nothing to read")

    backward = forward


def test_a_group_tells_what_ended_its_world(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bindings/python"))
    from lamella import Group
    from lamella.pipeline import Pipeline, Schedule

    c_host.build([beside.NATIVE])
    with Group.create(Group.new_id(), 0, 1) as group:
        with Pipeline(Schedule.build("gpipe", 1, 1), {0: Failing()}, [], group=group) as pipeline:
            assert group.error is None
            with pytest.raises(ValueError):
                pipeline.run()
            assert re.search("stage 0, forward.*ValueError: nothing to read", str(group.error))
