"""The demo as a user meets it: losses that no split changes, files, mistakes, workers that die."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from bindings.cli import main  # noqa: E402
from bindings.cli.common import Problem  # noqa: E402
from bindings.cli.demo import c_host, demo, show, workers  # noqa: E402

SMALL = ["--layers", "4", "--hidden", "160", "--micro-batches", "4", "--sequence", "64"]  # 5 heads


@pytest.fixture(scope="session")
def program():
    return c_host.build()


def lamella_demo(*arguments, cwd=None):
    command = [str(ROOT / "lamella"), "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


@pytest.fixture(scope="session")
def alone(program):
    """Losses of one worker, by dtype."""
    steps = [*SMALL, "--steps", "8"]
    return {
        dtype: workers.run(program, [*steps, "--dtype", dtype], 1, 1).losses
        for dtype in ("f32", "bf16")
    }


@pytest.mark.parametrize("dtype, tolerance", [("f32", 1e-4), ("bf16", 5e-3)])
@pytest.mark.parametrize(
    "pp, tp, more",
    [
        (2, 2, ["--schedule", "zbv"]),
        (2, 1, ["--schedule", "zbv", "--assign", "1|2|3|4"]),
        (1, 2, []),
        (1, 3, []),  # 5 heads: 2, 2, 1
        (2, 1, []),
        (3, 1, []),  # 4 layers: 2, 1, 1
        (2, 2, ["--schedule", "gpipe"]),
        (2, 2, ["--schedule", "layerwise"]),
        (2, 2, ["--assign", "1|2-4"]),
        (4, 1, ["--draw", "layerwise,gpipe,1f1b"]),
    ],
)
def test_losses_are_those_of_one_worker(program, alone, pp, tp, more, dtype, tolerance):
    told = workers.run(program, [*SMALL, "--steps", "8", "--dtype", dtype, *more], pp, tp)
    assert len(told.losses) == 8
    for split, whole in zip(told.losses, alone[dtype]):
        assert abs(split - whole) <= tolerance
    assert told.losses[-1] < told.losses[0] - 0.5
    assert 0 < told.idle < 1 and told.transfer > 0
    if tp == 1:  # the sums of tensor parts are timed apart from the steps
        assert told.idle + told.transfer < 1
    for worker in told.memory:
        assert abs(worker["peak"] / worker["predicted"] - 1) < 0.05


SCHEDULES = ["layerwise", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "interleaved-zb"]
SCHEDULES += ["zbv", "v-half", "v-min", "dualpipev", "auto"]


DEEP = ["--layers", "8", "--hidden", "96", "--micro-batches", "8", "--sequence", "64"]


@pytest.fixture(scope="session")
def deep_alone(program):
    return workers.run(program, [*DEEP, "--steps", "4"], 1, 1).losses


@pytest.mark.parametrize("pp, tp", [(4, 1), (2, 2)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_trains_to_the_losses_of_one_worker(program, deep_alone, schedule, pp, tp):
    told = workers.run(program, [*DEEP, "--steps", "4", "--schedule", schedule], pp, tp)
    assert len(told.losses) == 4
    for split, whole in zip(told.losses, deep_alone):
        assert abs(split - whole) <= 1e-4
    for worker in told.memory:
        assert abs(worker["peak"] / worker["predicted"] - 1) < 0.05


def test_no_schedule_of_the_library_is_left_out():
    listed = lamella_demo("--schedule", "zigzag").stderr.rpartition("expected one of ")[2]
    assert sorted(listed.strip().split(", ")) == sorted(SCHEDULES)


def test_losses_depend_on_the_seed(program, alone):
    told = workers.run(program, [*SMALL, "--steps", "1", "--seed", "2"], 1, 1)
    assert abs(told.losses[0] - alone["f32"][0]) > 1e-4


DRAWN = [*SMALL, "--steps", "1", "--draw", "layerwise,1f1b"]


def idle(report, how):
    """All workers' shares together. how: "idle", which is measured, or "predicted"."""
    return sum(worker[how] for worker in report["workers"])


def work(path):
    """(began, ended, worker) of a traced step's forwards and backwards, in ns, in order."""
    events = json.loads(path.read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X" and e["name"][0] in "FB"]
    return sorted(
        (round(1e3 * e["ts"]), round(1e3 * (e["ts"] + e["dur"])), e["pid"]) for e in spans
    )


def test_each_schedule_reports_what_the_simulator_predicts(program, tmp_path):
    reports = workers.run(program, [*DRAWN, "--out", str(tmp_path)], 2, 1).reports
    for name in ("layerwise", "1f1b"):
        report = reports[name]
        for rank in range(2):
            assert re.search(r"^worker %d .*F.*B" % rank, report["grid"], re.M)
        for worker in report["workers"]:
            assert 0 <= worker["predicted"] < 1 and worker["forward"] > 0 < worker["backward"]
            assert 0 <= worker["idle"] < 1
    # Layer by layer one of two works at any time; in turns, both do for part of the time.
    assert abs(idle(reports["layerwise"], "predicted") - 1) < 1e-3
    assert idle(reports["1f1b"], "predicted") < 0.99
    # On the wall's clock both are also idle between one's work and the other's.
    assert idle(reports["layerwise"], "idle") > 1 - 1e-4
    spans = work(tmp_path / "layerwise.json")
    assert [rank for _, _, rank in spans] == [0, 1, 1, 0] * 4
    assert all(ended <= began for (_, ended, _), (began, _, _) in zip(spans, spans[1:]))


@pytest.fixture
def one_core():
    """This process and those that it starts share a core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


def test_workers_that_share_a_core_are_measured_by_their_own_time(program, one_core):
    reports = workers.run(program, DRAWN, 2, 1).reports
    for report in reports.values():
        assert report["shared_cores"]
        assert all(0 <= worker["idle"] < 1 for worker in report["workers"])
    # The replay leaves no gap, however long a worker waited for the core.
    assert abs(idle(reports["layerwise"], "idle") - 1) < 1e-4
    assert idle(reports["1f1b"], "idle") < 0.99


def told_of(times, idle=0.0, transfer=0.0):
    told = workers.Told()
    told.times, told.idle, told.transfer = times, idle, transfer
    return told


def test_the_table_of_speeds_accounts_for_all_of_two_workers_time(capsys):
    one = told_of([900, 900, 150, 200, 500])  # the first two warm up
    pp, tp = told_of([900, 900, 125], 0.1, 0.04), told_of([900, 900, 160], 0.01, 0.3)
    show.scaling({(1, 1): one, (2, 1): pp, (1, 2): tp})
    rows = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["workers", "step", "speed-up", "idle", "transfer", "smaller gemms, other"],
        ["1", "200 ms", "1.00"],
        ["2 by pp", "125 ms", "1.60", "10.0 %", "4.0 %", "6.0 %"],  # 80 % is one worker's work
        ["2 by tp", "160 ms", "1.25", "1.0 %", "30.0 %", "6.5 %"],
    ]


def flows(trace, phase):
    """(worker, category, micro-batch, path) of the ends of messages."""
    return [
        (e["pid"], e["cat"], e["args"]["micro"], e["args"]["path"])
        for e in trace["traceEvents"]
        if e["ph"] == phase
    ]


@pytest.mark.parametrize("tp", [1, 2])
def test_pictures_show_each_message_and_what_carried_it(program, tmp_path, tp):
    options = [*SMALL, "--steps", "1", "--draw", "1f1b", "--out", str(tmp_path)]
    workers.run(program, options, 2, tp)
    trace = json.loads((tmp_path / "1f1b.json").read_text())
    parts = [(part, micro) for part in range(tp) for micro in range(4)]
    for phase, here, there in (("s", 0, tp), ("f", tp, 0)):
        ends = {(here + part, "activation", micro, "shm") for part, micro in parts}
        ends |= {(there + part, "gradient", micro, "shm") for part, micro in parts}
        assert set(flows(trace, phase)) == ends
        assert len(flows(trace, phase)) == len(ends)
    svg = (tmp_path / "1f1b.svg").read_text()
    assert svg.count('<line class="e"') == 2 * 4 * tp
    assert "lines: messages, by shm<" in svg
    label = "edge 0 activations: shm; edge 0 gradients: shm"
    assert svg.count("<title>%s</title>" % label) == 2 * tp


def read_safetensors(path):
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(body)
    return header, {name: body[slice(*tensor["data_offsets"])] for name, tensor in header.items()}


@pytest.mark.parametrize("dtype, code, size", [("f32", "F32", 4), ("bf16", "BF16", 2)])
def test_saved_weights_are_whole_and_the_same_for_any_split(program, tmp_path, dtype, code, size):
    files = []
    for pp, tp, schedule in [(1, 1, "1f1b"), (2, 3, "1f1b"), (2, 2, "zbv")]:
        path = tmp_path / ("%d_%d.safetensors" % (pp, tp))
        options = [*SMALL, "--steps", "0", "--dtype", dtype, "--save", str(path)]
        assert workers.run(program, [*options, "--schedule", schedule], pp, tp).saved == str(path)
        files.append(read_safetensors(path))
    (header, whole), *splits = files
    for _, split in splits:
        assert whole.keys() == split.keys()
        assert all(whole[name] == split[name] for name in whole)
    assert len(header) == 4 * 6 + 4
    expected = {"dtype": code, "shape": [480, 160]}
    qkv = header["layers.3.attention.qkv.weight"]
    assert {key: qkv[key] for key in expected} == expected
    assert len(whole["layers.3.attention.qkv.weight"]) == 480 * 160 * size


def test_trained_weights_are_saved_as_one_worker_trains_them(program, tmp_path):
    saved = {}
    for pp, tp, steps in [(1, 1, 0), (1, 1, 4), (2, 2, 4)]:
        path = tmp_path / ("%d_%d_%d.safetensors" % (pp, tp, steps))
        workers.run(program, [*SMALL, "--steps", str(steps), "--save", str(path)], pp, tp)
        _, tensors = read_safetensors(path)
        saved[pp, steps] = {name: numpy.frombuffer(t, "<f4") for name, t in tensors.items()}
    for name, one in saved[1, 4].items():
        moved = abs(one - saved[1, 0][name]).max()
        assert moved > 1e-4, name
        assert abs(saved[2, 4][name] - one).max() < 0.05 * moved, name


def test_the_whole_demo_runs_and_says_what_it_found(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    files = ["--text", text, "--save", "m.safetensors"]
    done = lamella_demo(*SMALL[:4], "--steps", 4, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in [
        r"^4 workers: a pipeline of 2 \(layers 1-2, 3-4\) x 2 tensor parts;$",
        r"4 workers  step 1/4  loss \d\.\d+  \d+ tokens/s  \d+ s left$",
        r"4 workers  step 4/4  loss \d",
        r"1 worker  step 4/4  loss \d",
        r"^ +\d\.\d\d \|\*$",  # the curves begin together
        r"largest difference .* allowed 1e-04: PASS",
        r"One step, layerwise",
        r"One step, 1f1b",
        r"^worker 3 ",
        r"layerwise measured +predicted +1f1b measured +predicted",
        r"MB +[+-]\d+\.\d %$",
        r"^F forward, B backward, \. idle; [\d.]+ ms in all$",
        r"^  1 +\d+ ms +1.00",
        *[r"^  2 by %s +\d+ ms +\d\.\d\d( +-?\d+\.\d %%){3}$" % way for way in ("pp", "tp")],
        r"^Idle time of two workers",
        r"^all of this took \d+ s$",
        r"saved the model to m.safetensors",
    ]:
        assert re.search(expected, done.stdout, re.M), expected
    assert done.stdout.index("One step, layerwise") < done.stdout.index("One step, 1f1b")
    assert read_safetensors(tmp_path / "m.safetensors")
    for name in ("layerwise.svg", "1f1b.svg"):
        assert (tmp_path / "lamella-demo" / name).read_text().lstrip().startswith("<svg")


@pytest.mark.parametrize("dtype, bound", [("f32", "1e-04"), ("bf16", "5e-03")])
def test_one_worker_that_differs_fails_the_demo(
    program, tmp_path, monkeypatch, capsys, dtype, bound
):
    start = c_host.Demo.start

    def other_weights(self, pp, tp, extra, *rest):
        return start(self, pp, tp, extra if pp > 1 else [*extra, "--seed", "2"], *rest)

    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that what main sets does not stay
    monkeypatch.setattr(demo, "build", lambda: program)
    monkeypatch.setattr(c_host.Demo, "start", other_weights)
    monkeypatch.setattr(c_host.Demo, "show_scaling", lambda self: None)
    options = ["--layers", "2", "--hidden", "32", "--micro-batches", "2", "--steps", "1"]
    options += ["--tp", "1", "--dtype", dtype, "--out", str(tmp_path)]
    assert main.main(["demo", *options]) == 1
    said = capsys.readouterr().out
    assert re.findall(r"; allowed (.*)$", said, re.M) == [bound + ": FAIL"]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--hidden", "100"], "--hidden: found 100, expected a multiple of 32"),
        (["--tp", "9"], "--tp 9: the model has 4 attention heads"),
        (["--layers", "2", "--pp", "3"], "--pp 3: more stages than layers (2)"),
        (["--schedule", "zigzag"], "--schedule: found 'zigzag', expected one of auto, layerwise"),
        (["--schedule", ""], "--schedule: found '', expected one of auto, layerwise"),
        (["--assign", ""], "--assign '': expected a layer's number at character 1"),
        (["--schedule", "dualpipev", "--micro-batches", "3"], "m must be at least 2 p, so 4"),
        (["--schedule", "v-half", "--stages-per-rank", "1"], "v must be 2"),
        (["--schedule", "zbv", "--pp", "5"], "more stages than layers (8)"),
        (["--layers", "4", "--assign", "1,3|2,4"], "a stage must hold consecutive layers"),
        (["--text", "/nosuch"], "--text /nosuch: No such file or directory"),
        (["--save", "/nosuch/m"], "--save /nosuch/m: No such file or directory"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--host", "jax", "--device", "cuda"], "the demo's stages in JAX stay on the CPU"),
        (["--out", "/proc/nosuch"], "--out /proc/nosuch: No such file or directory"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(arguments, reason):
    done = lamella_demo(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def workers_of(pid):
    children = Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split()
    return sorted(int(child) for child in children if "lamella_demo" in command_line(child))


def command_line(pid):
    return Path("/proc/%s/cmdline" % pid).read_text()


def assert_gone(pids):
    assert [pid for pid in pids if os.path.exists("/proc/%d" % pid)] == []


def start_training(out, *more):
    """The demo, with its first step done."""
    command = [str(ROOT / "lamella"), "demo", "--steps", "100000", "--out", str(out), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while " step " not in process.stdout.readline():
        assert process.poll() is None
    return process


def test_a_killed_worker_ends_the_demo_with_one_clear_line(program, tmp_path):
    process = start_training(tmp_path)
    ranks = workers_of(process.pid)
    assert len(ranks) == 4
    began = time.monotonic()
    os.kill(ranks[2], signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 1
    assert re.fullmatch(
        r"lamella: worker 2 \(place 2, part 1\) was killed by SIGKILL after step \d+; "
        r"the others saw PEER_DEAD and ended\n",
        err,
    )
    assert "Traceback" not in out
    assert_gone(ranks)


class Looked:
    """A process, and what each look at it finds."""

    def __init__(self, *found):
        self.found = list(found)

    def poll(self):
        self.returncode = self.found.pop(0)
        return self.returncode


def test_a_killed_worker_is_named_where_another_s_end_is_seen_first():
    world = workers.Workers(1, None)
    world.processes = [Looked(None, -signal.SIGKILL), Looked(1)]
    world.running = {0, 1}
    world.note_ends()
    assert world.running == set()
    assert world.explain() == "worker 0 (place 1, part 1) was killed by SIGKILL"


def test_a_stopped_worker_ends_the_demo_at_the_deadline(program, tmp_path):
    process = start_training(tmp_path, "--deadline", "2")
    ranks = workers_of(process.pid)
    began = time.monotonic()
    os.kill(ranks[2], signal.SIGSTOP)
    out, err = process.communicate(timeout=60)
    assert 2 <= time.monotonic() - began < 25  # 30 s where none is given
    assert process.returncode == 1
    assert re.fullmatch(
        r"lamella: worker 2 \(place 2, part 1\) did not go on after step \d+: stopped by a signal; "
        r"the others saw PEER_STALLED and ended\n",
        err,
    )
    assert "Traceback" not in out
    assert_gone(ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_worker(program, tmp_path, number):
    process = start_training(tmp_path)
    ranks = workers_of(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == "lamella: interrupted\n"
    assert "Traceback" not in out
    assert_gone(ranks)


def test_a_worker_that_fails_says_why(program):
    with pytest.raises(Problem) as problem:
        workers.run(program, [*SMALL, "--steps", "1", "--text", "/etc/hostname"], 2, 1)
    assert "a sequence needs" in str(problem.value)
