"""The bench's rows: which figures of which programs get which goals.

The programs do not run here: `rounds` is faked with the names that they print, and `output` with what
the demo says of itself.
"""

import json
import re

import pytest

from bindings.cli import bench_hosts, bench_jax, bench_rows, bench_table, bench_train
from bindings.cli.common import ROOT, Problem

def named(kinds, sizes):
    return [f"{kind}/{size}" for kind in kinds for size in sizes]


SIZES = (64, 256, 1024, 2048, 4096, 16384, 65536, 262144, 1 << 20, 4 << 20, 16 << 20)
MOVED = (64, 4096, 65536, 1 << 20, 16 << 20)
CALLS = ("linear", "linear_row_tp1", "linear_col_group_of_1", "linear_row_group_of_1")
CALLS += ("linear_row_whole_x_group_of_1", "ffn_group_of_1")
SCHEDULES = ("simulate/131072", "events/131072", "lower/131072", "parse/131072", "refuse/131072")
SCHEDULES += ("check/1048576",)
CUTS = ("", "_cuts", "_capped", "_short", "_loop")
WAITS = ("all_reduce", "recv", "pull")
ABOVE = (("inference", "<= 2"), ("no_grad", "<= 5"), ("grad", "<= 12"))
SLOW = 2.5  # times oneDNN's own
FROM_TORCH = ("all_reduce", "linear", "ffn")
FFN_CASES = ("bf16_m512", "bf16_m1", "f32_m512", "f32_m1")
PRODUCTS = [f"{dtype}_{size}" for size in ("m512", "m64") for dtype in ("f32", "bf16")]
JAX_CASES = [f"{dtype}_m{m}" for dtype in ("bf16", "f32") for m in (512, 1)]
CROSSED = (64, 4096, 65536, 1 << 20, 4 << 20, 16 << 20)
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce")
CROSSINGS = named([*COLLECTIVES, "one_way"], CROSSED)


ACTIONS = ("action_p1", "action_local", "action_p2", "overhead_p2", "turn_p2", "clock")
SYNTHETIC = [f"synthetic_{schedule}_{world}" for world in ("p4_m8", "p8_m16") for schedule in ("gpipe", "1f1b", "zb-h1")]
DEMO_SCHEDULES = ("gpipe", "1f1b")
STEP = ["step", "pipeline", "tokens_per_second", "peak_bytes", "predicted_bytes"]
BESIDE_ONEDNN = [f"{dtype}, {threads}" for dtype in ("f32", "bf16") for threads in ("1 thread", "2 threads")]


# What each command of a group prints.
SHARED = named(["all_reduce", "all_gather", "reduce_scatter"], SIZES) + named(["one_way"], MOVED)
WAYS = ("one_way", "one_way_given", "one_way_between_given")
PRINTED = {
    "lamella": SHARED + named([*WAYS[1:], "memcpy", "crossing"], MOVED) + named(["all_reduce_bf16"], SIZES),
    "open mpi": SHARED,
    "a killed rank": [f"{kind}/{wait}" for wait in WAITS for kind in ("killed", "killed_worst")],
    "ffn": [f"ffn_{dtype}_m{m}_{way}" for dtype in ("f32", "bf16") for m in (512, 64, 8, 1)
            for way in ("onednn", "packed", "plain")],
    "call": ["gemm_1x1x1", *(f"above_{call}" for call in CALLS)],
    "schedule": list(SCHEDULES),
    "partition": [f"partition_1000_64{cut}" for cut in CUTS],
    "calls from torch": [f"{name}_{way}" for name in FROM_TORCH for way in ("c", *(f"above_{mode}" for mode, _ in ABOVE))],
    "ffn in torch": ["f32_product"] + [f"ffn_{case}_{side}" for case in FFN_CASES for side in ("gloo", "packed", "plain")],
    "oneDNN": ["ffn_f32_m512_onednn"],
    "transfers in torch": [f"{crossing}/{side}" for crossing in CROSSINGS for side in ("gloo", "lamella", "functional")],
    "the wheel's oneDNN": [f"product_{case}_{side}" for case in PRODUCTS for side in ("wheel", "debian")],
    "calls from JAX": ["doubled", *(f"{name}_above" for name in FROM_TORCH)],
    "ffn from JAX": [f"ffn_{case}_{weights}" for case in JAX_CASES for weights in ("packed", "plain")],
    "ffn by XLA": [f"ffn_{case}" for case in JAX_CASES],
    "train step": ["f32_product", "step/pipelining", *(f"{kind}/{linear}_{schedule}" for linear in ("torch", "lamella")
                   for schedule in ("1f1b", "zbv") for kind in ("step", "idle", "simulated"))],
    "pipeline": [f"pipeline_{action}" for action in ACTIONS],
    "synthetic": [f"{name}_{way}" for name in SYNTHETIC for way in ("measured", "simulated", "metering")],
    "one worker": STEP,
    "tp=2": STEP,
    **{name: [*STEP, "observed", "simulated"] for name in ("pp=2", *DEMO_SCHEDULES)},
    **{name: ["step", "onednn_alone", "share", "step_rate", "onednn_rate"] for name in BESIDE_ONEDNN},
    "kernels": ["gemm_f32_512x512x512/onednn", "gemm_f32_512x512x512/packed", "act_gelu_f32"],
}

# The goals of each group, by the names of their rows.
GOALS = {
    "comm": [(f"all_reduce/{size} less Open MPI's", "<= 0.15") for size in SIZES[:4]]
    + [(f"all_reduce/{size}", "<= 0.80") for size in SIZES[4:]]
    + [(f"one_way/{size}", "<= 0.833") for size in MOVED[3:]]
    + [(f"{way}/{size}", "<= 1.25") for size in MOVED[3:] for way in WAYS]
    + [(f"{kind}/{wait}", "<= 100") for wait in WAITS for kind in ("killed", "killed_worst")],
    "ffn": [(f"ffn_{dtype}_m512_{way}", goal) for dtype in ("f32", "bf16")
            for way, goal in (("packed", "<= 1.03"), ("plain", "<= 1.10"))]
    + [("ffn_bf16_m1_best", "<= 1.10"), ("ffn_f32_m1_best", "<= 1.10")],
    "call": [(f"above_{call}", "<= 100") for call in CALLS],
    "schedule": [("simulate/131072", "<= 2000"), ("events/131072", "<= 2000"), ("check/1048576", "<= 50000")],
    "partition": [(f"partition_1000_64{cut}", "<= 1000") for cut in CUTS],
    "hosts": [(f"torch {name} above its C call, {mode}", goal) for name in FROM_TORCH for mode, goal in ABOVE]
    + [(f"torch ffn {case}, packed weights", goal)
       for case, goal in (("bf16_m512", "<= 0.90"), ("bf16_m1", "<= 0.55"), ("f32_m512", "<= 0.45"))]
    + [(f"torch {crossing}", "<= 0.25" if crossing.endswith("16777216") else "<= 0.20") for crossing in CROSSINGS]
    + [(f"product {case}, the wheel's oneDNN", "<= 1.05") for case in PRODUCTS[:2]],
    "hosts_jax": [(f"jax {name}, jitted, above x * 2", "<= 1") for name in FROM_TORCH]
    + [(f"jax ffn_{case}, tp=2, packed weights", goal) for case, goal in (("bf16_m512", "<= 0.40"), ("bf16_m1", "<= 0.06"), ("f32_m512", "<= 0.90"))],
    "hosts_train": [(f"train {row}, {name}, {schedule}", goal) for schedule in ("1f1b", "zbv")
                    for name, goals in (("the same modules", ("<= 0.97", "<= 2")), ("Lamella's linear layers", ("<= 0.60", "<= 2")))
                    for row, goal in zip(("step", "idle off the simulated"), goals)],
    "pipeline": [(f"pipeline_{action}", "<= 2") for action in ACTIONS]
    + [(name, "0.95 to 1.05") for name in SYNTHETIC]
    + [("measuring a step, the most of any schedule", "<= 1"), ("synthetic_order_p4_m8", "<= 0"), ("synthetic_order_p8_m16", "<= 0")],
    "demo": [(f"demo step, {name}", ">= 0.80") for name in BESIDE_ONEDNN]
    + [("demo step, one worker", ">= 0.90"), ("demo step, pp=2 1f1b, 8 micro-batches", "0.95 to 1.05")]
    + [(f"peak bytes, {name}", "0.95 to 1.05") for name in ("one worker", "tp=2", "pp=2", "the schedule with most")]
    + [(f"demo step of 4 layers, pp=2 {schedule}", "0.95 to 1.05") for schedule in DEMO_SCHEDULES]
    + [("demo step of 4 layers, pp=2, order of schedules", "<= 0"), ("the whole demo", "<= 90")],
    "kernels": [],
}


@pytest.fixture
def open_mpi(monkeypatch, tmp_path):
    """A folder with its launcher and the program for it, neither ever run: tests take them away."""
    for name in ("mpirun", "comm_bench_mpi"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bench_rows, "PROGRAMS", tmp_path)
    return tmp_path


@pytest.fixture
def printed(monkeypatch, open_mpi):
    """The names that rounds gives, to be changed by a test."""
    names = {command: list(lines) for command, lines in PRINTED.items()}
    figures = {"f32_product": SLOW}

    def rounds(commands, n, timeout=300):
        return {command: {line: [figures.get(line, 1.0)] * n for line in names[command]} for command in commands}

    def output(command, timeout=300):
        return json.dumps({"schedules": DEMO_SCHEDULES}) if command[1:] == ["--check"] else ""

    monkeypatch.setattr(bench_rows, "output", output)
    monkeypatch.setattr(bench_rows.os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(bench_rows, "rounds", rounds)
    monkeypatch.setattr(bench_hosts, "rounds", rounds)
    monkeypatch.setattr(bench_jax, "rounds", rounds)
    monkeypatch.setattr(bench_train, "rounds", rounds)
    return names


@pytest.mark.parametrize("group", GOALS)
def test_each_group_has_its_goals(printed, group):
    rows = bench_rows.GROUPS[group](3)
    assert sorted((row.name, row.goal) for row in rows if row.goal) == sorted(GOALS[group])
    assert all((row.met is None) == (not row.goal) for row in rows)


@pytest.mark.parametrize(
    "command, figure",
    [
        ("lamella", "all_reduce/4096"),
        ("lamella", "one_way_given/1048576"),
        ("open mpi", "one_way/1048576"),
        ("a killed rank", "killed_worst/pull"),
        ("ffn", "ffn_bf16_m512_plain"),
        ("call", "above_linear"),
        ("calls from torch", "linear_above_grad"),
        ("transfers in torch", "one_way/64/gloo"),
        ("transfers in torch", "reduce_scatter/64/gloo"),
        ("transfers in torch", "broadcast/16777216/gloo"),
        ("calls from JAX", "linear_above"),
        ("ffn by XLA", "ffn_f32_m512"),
        ("train step", "idle/lamella_1f1b"),
        ("ffn in torch", "ffn_bf16_m1_packed"),
        ("the wheel's oneDNN", "product_bf16_m64_debian"),
        ("ffn in torch", "f32_product"),
        ("train step", "f32_product"),
        ("schedule", "check/1048576"),
        ("partition", "partition_1000_64"),
        ("pipeline", "pipeline_action_p2"),
        ("synthetic", "synthetic_1f1b_p8_m16_measured"),
        ("synthetic", "synthetic_zb-h1_p4_m8_simulated"),
        ("one worker", "step"),
        ("tp=2", "predicted_bytes"),
        ("pp=2", "observed"),
        ("gpipe", "peak_bytes"),
        ("bf16, 2 threads", "onednn_rate"),
    ],
)
def test_a_figure_by_another_name_does_not_lose_its_goal_unnoticed(printed, command, figure):
    group = {"lamella": "comm", "open mpi": "comm", "a killed rank": "comm"}.get(command, command)
    group = "hosts" if "torch" in command or "wheel" in command else group
    group = "hosts_jax" if command in ("calls from JAX", "ffn by XLA") else group
    group = "hosts_train" if command == "train step" else group
    group = "pipeline" if command == "synthetic" else group
    group = "demo" if command in ("one worker", "tp=2", "pp=2", *DEMO_SCHEDULES, *BESIDE_ONEDNN) else group
    printed[command][printed[command].index(figure)] = "renamed"
    with pytest.raises(Problem, match=f"a goal is on {figure}, which no program printed"):
        bench_rows.GROUPS[group](3)


@pytest.mark.parametrize("command", ["pipeline", "synthetic", "one worker", "tp=2", "pp=2", *DEMO_SCHEDULES, *BESIDE_ONEDNN])
def test_a_program_that_prints_nothing_is_an_error(printed, command):
    printed[command].clear()
    with pytest.raises(Problem, match="a goal is on .*, which no program printed"):
        bench_rows.GROUPS["pipeline" if command in ("pipeline", "synthetic") else "demo"](3)


@pytest.mark.parametrize("text", ["", "{}"])
def test_a_demo_that_tells_no_schedules_is_an_error(printed, monkeypatch, text):
    monkeypatch.setattr(bench_rows, "output", lambda command: text)
    with pytest.raises(Problem, match="printed no plan with schedules"):
        bench_rows.demo(3)


@pytest.mark.parametrize("absent", ["mpirun", "comm_bench_mpi"])
def test_without_open_mpi_its_rows_stay_and_are_not_judged(printed, open_mpi, absent):
    with_peer = bench_rows.comm(3)
    (open_mpi / absent).unlink()
    rows = bench_rows.comm(3)
    assert [(row.name, row.goal, row.peer) for row in rows] == [(row.name, row.goal, row.peer) for row in with_peer]
    lost = [row for row in rows if "no Open MPI" in row.note]
    assert [row.name for row in lost] == [row.name for row in with_peer if "Open MPI" in row.name + row.peer]
    assert {(row.peer_figure, row.ratio, row.met) for row in lost} == {(None, None, None)}
    assert all(row.figure == 1 for row in lost if row.peer) and "Open MPI" in bench_table.table(rows)
    assert "less Open MPI's |  |  |  |  | <= 0.15 |  |" in bench_table.rows_markdown(rows)
    assert all(row.met is not None for row in rows if row.goal and row not in lost)


def test_where_torch_is_not_slow_the_goal_is_on_onednns_time(printed, monkeypatch):
    monkeypatch.setattr(bench_hosts, "is_slow", lambda ratios: ratios[0] > SLOW)
    rows = bench_hosts.torch_ffn(3)
    goals = [(row.peer, row.goal) for row in rows if row.name == "torch ffn f32_m512, packed weights"]
    assert goals == [("torch + gloo", ""), ("oneDNN's gemms", "<= 1.10")]


def test_where_torch_is_not_slow_lamellas_layers_have_no_goal(printed, monkeypatch):
    monkeypatch.setattr(bench_hosts, "is_slow", lambda ratios: ratios[0] > SLOW)
    goals = {row.name: row.goal for row in bench_train.hosts_train(3)}
    assert goals["train step, Lamella's linear layers, 1f1b"] == ""
    assert goals["train step, the same modules, 1f1b"] == "<= 0.97"


def test_the_rows_of_hosts_are_among_the_groups():
    assert {*bench_hosts.GROUPS, *bench_jax.GROUPS, *bench_train.GROUPS} <= set(bench_rows.GROUPS.values())


@pytest.mark.parametrize("ratios, slow", [([2.5, 2.5, 1.0], True), ([1.1, 1.9, 2.5], False)])
def test_torch_is_slow_where_its_product_takes_twice_onednns_time(ratios, slow):
    assert bench_hosts.is_slow(ratios) == slow


def test_each_collective_that_torch_has_is_among_the_rows():
    """Collectives are the rows of ids 16 to 23 in the operator table."""
    listed = re.findall(r"LAM_OP\((\d+), (\w+),", (ROOT / "abi/lamella_ops.def").read_text())
    assert sorted(name for number, name in listed if 16 <= int(number) < 24) == sorted(COLLECTIVES)


def test_a_row_says_what_its_peer_does_instead(printed):
    notes = {row.name: row.note for row in bench_hosts.torch_comm(3)}
    assert notes["torch reduce_scatter/64"].startswith("gloo has none")
    assert notes["torch all_reduce/64"] == ""


def source(program):
    return (ROOT / "tests/bench" / program).read_text()


def literals(program):
    return set(re.findall(r'"([^"\n]*)"', source(program)))


def test_the_programs_print_these_names():
    kinds = {name.split("/")[0] for name in PRINTED["lamella"]}
    assert kinds <= literals("comm_bench.c")
    assert {name.split("/")[0] for name in PRINTED["open mpi"]} <= literals("comm_bench_mpi.c")
    assert set(WAITS) <= literals("death_bench.c")
    sides = {name.partition("/")[2] for name in PRINTED["train step"]}
    assert sides | {"step/%s", "idle", "simulated"} <= literals("hosts/train_step.py")
    assert {"killed/%s %.3f ms", "killed_worst/%s %.3f ms\\n"} <= literals("death_bench.c")
    assert {"onednn", "packed", "plain", "ffn_%s_m%d_%s %.1f us"} <= literals("ops_bench.c")
    assert set(PRINTED["call"]) <= literals("call_bench.c")
    assert set(SCHEDULES) <= literals("schedule_bench.c")
    assert set(PRINTED["partition"]) <= literals("partition_bench.c")
    assert set(PRINTED["pipeline"]) <= literals("pipeline_bench.c")
    ways = {"measured %.1f us", "simulated %.1f us\\n", "metering %.6f %%"}
    assert {f"synthetic_%s_p%d_m%d_{way}" for way in ways} <= literals("synthetic_bench.c")
    assert {*FROM_TORCH, *(mode for mode, _ in ABOVE), "%s_c", "%s_above_%s"} <= literals("hosts/torch_call.py")
    assert {"gloo", "packed", "plain", "ffn_%s_m%d", "%s_%s", "bf16", "f32"} <= literals("hosts/torch_ffn.py")
    assert bench_hosts.SLOWNESS in literals("hosts/peers.py")
    assert {"gloo", "lamella", "functional", "%s/%d/%s"} <= literals("hosts/torch_comm.py")
    crossed = re.search(r"^KINDS = \((.*)\)$", source("hosts/torch_comm.py"), re.M)[1].split(", ")
    assert sorted(crossed) == sorted({crossing.split("/")[0] for crossing in CROSSINGS})
    assert {"wheel", "debian", "m512", "m64", "f32", "bf16", "product_%s_%s"} <= literals("hosts/wheel_onednn.py")
    assert {*FROM_TORCH, "doubled", "%s_above"} <= literals("hosts/jax_call.py")
    assert {"bf16", "f32", "ffn_%s_m%d", "lamella", "xla"} <= literals("hosts/jax_ffn.py")


@pytest.mark.parametrize("program", sorted((ROOT / "tests/bench").glob("*.c")), ids=lambda path: path.stem)
def test_no_program_makes_up_a_spread(program):
    """`name figure unit` may end a line, a spread that is a number of the source may not."""
    assert [text for text in literals(program.name) if re.search(r"f \S+ [\d.]+\\n", text)] == []
