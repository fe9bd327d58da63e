"""The rows of `./lamella bench`: which programs are run, what is compared with what, and the goals.

Ratios are ours over the peer's time, so smaller is better, unless a row says otherwise.
Invariant: both sides of a ratio come from the same round.
"""

import json
import os
import shutil
import tempfile
import time
from itertools import combinations

from bindings.cli import bench_hosts, bench_jax, bench_train
from bindings.cli.bench_figures import Row, alone, compare, output, require, rounds
from bindings.cli.common import ROOT, Problem

PROGRAMS = ROOT / "bazel-bin" / "tests" / "bench"
DEMO = str(ROOT / "bazel-bin" / "bindings" / "cli" / "demo" / "lamella_demo")
LAUNCH = [str(ROOT / "lamella"), "run", "--no-prefix", "-n"]
MPI = ["mpirun", "--allow-run-as-root", "--bind-to", "core", "-n", "2"]


def program(name, *arguments):
    return [str(PROGRAMS / name), *arguments]


AS_PREDICTED = "0.95 to 1.05"  # within 5 %, either way
BY_MPI = ("all_reduce", "all_gather", "reduce_scatter", "one_way")
WAYS = {
    "one_way": "host's memory: two copies",
    "one_way_given": "out of group memory: one copy",
    "one_way_between_given": "from group memory to group memory: one copy, of large messages by both ranks",
}


def comm(n):
    """all-reduce and transfer between 2 ranks, against Open MPI (both pinned) and memcpy"""
    commands, beside = {"lamella": program("comm_bench")}, [*MPI, *program("comm_bench_mpi")]
    if shutil.which(beside[0]) and shutil.which(beside[-1]):  # without Open MPI's headers the program is not built
        commands["open mpi"] = beside
    figures = rounds(commands, n)
    ours = figures["lamella"]
    require(ours, "all_reduce/64", "all_reduce/4096", "one_way/1048576", "one_way/16777216")
    return against_mpi(ours, figures.get("open mpi")) + against_memcpy(ours) + killed(n)


def against_mpi(ours, theirs):
    """Where there is no Open MPI (theirs is None) the rows stay, and nothing judges them."""
    lines = [line for line in ours if line.partition("/")[0] in BY_MPI]
    if theirs is not None:
        require(theirs, *lines)
    note = "" if theirs is not None else "no Open MPI on this machine"
    rows = []
    for line in lines:
        kind, _, size = line.partition("/")
        peer = theirs[line] if theirs is not None else None
        small = int(size) < 4096
        if kind == "all_reduce" and small:  # the goal below 4 KiB is on the difference
            rows.append(difference(f"{line} less Open MPI's", ours[line], peer, "<= 0.15", note))
        goals = {"all_reduce": "" if small else "<= 0.80", "one_way": "<= 0.833" if int(size) >= 1 << 20 else ""}
        rows.append(compare(line, "us", ours[line], "Open MPI", peer, goals.get(kind, ""), note))
    return rows


def difference(name, ours, theirs, goal, note):
    if theirs is None:
        return Row(name, None, "us", None, goal=goal, note=note)
    return alone(name, "us", [a - b for a, b in zip(ours, theirs)], goal, note)


def against_memcpy(ours):
    rows = []
    for size in (1 << 20, 16 << 20):
        require(ours, *(f"{kind}/{size}" for kind in (*WAYS, "memcpy", "crossing")))
        floor, copied = ours[f"crossing/{size}"], ours[f"memcpy/{size}"]
        for way, note in WAYS.items():
            rows.append(compare(f"{way}/{size}", "us", ours[f"{way}/{size}"], "memcpy", copied, "<= 1.25", note))
        rows.append(compare(f"crossing/{size}", "us", floor, "memcpy", copied,
                            note="the floor: one CPU copies what the other has just written"))
    return rows


def killed(n):
    figures = rounds({"a killed rank": program("death_bench")}, n)["a killed rank"]
    require(figures, "killed_worst/all_reduce", "killed_worst/recv", "killed_worst/pull")
    note = "from SIGKILL to the waiting rank's PEER_DEAD"
    return [alone(line, "ms", values, "<= 100", note) for line, values in figures.items()]


def ffn(n):
    """ffn at tp=2, H=4096 F=11008, against oneDNN's two gemms on packed weights with both cores"""
    figures = rounds({"ffn": program("ops_bench", "5")}, n, timeout=560)["ffn"]
    goals = {("512", "packed"): "<= 1.03", ("512", "plain"): "<= 1.10"}
    rows = []
    require(figures, *(f"ffn_{dtype}_m512_{way}" for dtype in ("bf16", "f32") for way in ("packed", "plain")))
    for line, values in figures.items():
        name, _, way = line.rpartition("_")
        if way == "onednn":
            peer = values
            continue
        rows.append(compare(line, "us", values, "oneDNN, packed", peer, goals.get((name.rpartition("_m")[2], way), "")))
    for dtype in ("bf16", "f32"):  # at M=1 packed or plain, whichever is faster
        best = [min(pair) for pair in zip(figures[f"ffn_{dtype}_m1_packed"], figures[f"ffn_{dtype}_m1_plain"])]
        peer = figures[f"ffn_{dtype}_m1_onednn"]
        rows.append(compare(f"ffn_{dtype}_m1_best", "us", best, "oneDNN, packed", peer, "<= 1.10"))
    return rows


def call(n):
    """what calling an operator costs above its kernel"""
    figures = rounds({"call": program("call_bench")}, n)["call"]
    require(figures, "above_linear", "above_linear_row_tp1", "above_linear_row_group_of_1", "above_ffn_group_of_1")
    return [alone(line, "ns", values, "<= 100" if line.startswith("above") else "") for line, values in figures.items()]


def pipeline(n):
    """what an action of a pipeline costs above its function; more workers than cores, synthetic, against the simulator"""
    figures = rounds({"pipeline": program("pipeline_bench"), "synthetic": program("synthetic_bench", "3")}, n)
    actions = figures["pipeline"]
    measured = ("action_p1", "action_local", "action_p2", "overhead_p2", "turn_p2", "clock")
    require(actions, *(f"pipeline_{each}" for each in measured))
    return [alone(line, "us", values, "<= 2") for line, values in actions.items()] + synthetic(figures["synthetic"])


def synthetic(figures):
    """Of each schedule, by 4 and by 8 workers; and whether they come in the order that was predicted."""
    ways = ("measured", "simulated", "metering")
    printed = [name for name, _, way in (line.rpartition("_") for line in figures) if way in ways]
    names = list(dict.fromkeys([*printed, "synthetic_1f1b_p4_m8", "synthetic_1f1b_p8_m16"]))
    require(figures, *(f"{name}_{way}" for name in names for way in ways))
    note = "synthetic: a rank's work is timed waits, forward 4 ms, backward 8 ms"
    rows, worlds = [], {}
    for name in names:
        step = figures[f"{name}_measured"], figures[f"{name}_simulated"]
        rows.append(compare(name, "us", step[0], "simulated", step[1], AS_PREDICTED, note))
        worlds.setdefault("_".join(name.split("_")[-2:]), []).append(step)
    measuring = [figures[f"{name}_metering"] for name in names]
    rows.append(alone("measuring a step, the most of any schedule", "% of it", [max(each) for each in zip(*measuring)], "<= 1", note))
    return rows + [ordered(f"synthetic_order_{world}", steps, note) for world, steps in worlds.items()]


def ordered(name, steps, note=""):
    """A row: how many pairs of schedules, of steps [(measured, simulated)], come otherwise than they were predicted."""
    wrong = [misordered([(measured[i], simulated[i]) for measured, simulated in steps]) for i in range(len(steps[0][0]))]
    return alone(name, "pairs", wrong, "<= 0", "; ".join([*([note] if note else []), "whose steps differ by over 5 %, in another order"]))


def misordered(steps):
    """Pairs of (measured, simulated) whose measured steps differ by over 5 %, and whose simulated ones have another order."""
    pairs = [sorted(pair) for pair in combinations(steps, 2)]
    return sum(slow[0] > 1.05 * fast[0] and slow[1] <= fast[1] for fast, slow in pairs)


def schedule(n):
    """what it costs to prove and to time a schedule, by its number of actions"""
    figures = rounds({"schedule": program("schedule_bench")}, n)["schedule"]
    goals = {"simulate/131072": "<= 2000", "events/131072": "<= 2000", "check/1048576": "<= 50000"}
    require(figures, *goals)
    return [alone(line, "us", values, goals.get(line, "")) for line, values in figures.items()]


def partition(n):
    """how long it takes to cut 1,000 layers into 64 stages"""
    figures = rounds({"partition": program("partition_bench")}, n)["partition"]
    require(figures, "partition_1000_64")
    return [alone(line, "ms", values, "<= 1000") for line, values in figures.items()]


def demo(n):
    """the demo's training step: against oneDNN on its gemms alone, one worker, and the simulator"""
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, min(cores, 2)}, reverse=True)
    two = [*LAUNCH, "2", DEMO, "--bench", "--threads", "1"]
    commands = {
        "one worker": [DEMO, "--bench", "--pp", "1", "--tp", "1", "--threads", str(threads[0])],
        "tp=2": [*two, "--pp", "1", "--tp", "2"],
        "pp=2": [*two, "--pp", "2", "--tp", "1", "--schedule", "1f1b", "--micro-batches", "8"],
    }
    # Unbound, two threads lose up to a quarter of their rate whenever one is moved: on both sides, unevenly.
    bound = ["env", "OMP_PROC_BIND=true", "GOMP_SPINCOUNT=20000"]
    beside = {f"{dtype}, {t} thread{'s' * (t > 1)}": [*bound, *program("demo_bench", "--dtype", dtype, "--threads", str(t))]
              for dtype in ("f32", "bf16") for t in threads}
    figures = rounds({**commands, **beside}, n)
    whole, tp, pp = figures["one worker"], figures["tp=2"], figures["pp=2"]
    for name in commands:
        require(figures[name], "step", "peak_bytes", "predicted_bytes")
    require(pp, "observed", "simulated")
    for name in beside:
        require(figures[name], "step_rate", "onednn_rate")
    note = "" if cores >= 2 else "two workers share one core"
    rows = [
        compare(f"demo step, {name}", "tokens/s", figures[name]["step_rate"], "oneDNN, gemms alone", figures[name]["onednn_rate"], ">= 0.80",
                "rates, threads bound to cores; the same gemms straight through oneDNN's C API: plain weights, weight gradients added to")
        for name in beside
    ]
    rows += [
        compare("demo step, one worker", "ms", whole["step"], "tp=2", tp["step"], ">= 0.90", note or "rate of tp=2 over one worker's"),
        compare("demo step, pp=2 1f1b, 8 micro-batches", "ms", pp["observed"], "simulated", pp["simulated"], AS_PREDICTED, note),
        compare("demo step, one worker over pp=2", "ms", whole["step"], "pp=2", pp["step"], note="speed-up by pipeline"),
    ]
    rows += [peak(name, figures[name]) for name in commands]
    return rows + by_schedule(n, note) + [whole_demo()]


def peak(name, lines):
    return compare(f"peak bytes, {name}", "B", lines["peak_bytes"], "predicted", lines["predicted_bytes"], AS_PREDICTED)


def whole_demo():
    """All that `./lamella demo` does once it is built: a user waits for it."""
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        output([str(ROOT / "lamella"), "demo", "--out", out])
    return alone("the whole demo", "s", [time.monotonic() - began], "<= 90", "one run")


def by_schedule(n, note):
    """Two workers with real compute: the step of a smaller model under every schedule, against the simulator."""
    two = [*LAUNCH, "2", DEMO, "--bench", "--threads", "1", "--pp", "2", "--layers", "4", "--micro-batches", "8"]
    figures = rounds({name: [*two, "--schedule", name] for name in schedules()}, n)
    for lines in figures.values():
        require(lines, "observed", "simulated", "peak_bytes", "predicted_bytes")
    steps = {name: (lines["observed"], lines["simulated"]) for name, lines in figures.items()}
    rows = [compare(f"demo step of 4 layers, pp=2 {name}", "ms", ours, "simulated", theirs, AS_PREDICTED, note)
            for name, (ours, theirs) in steps.items()]
    rows.append(ordered("demo step of 4 layers, pp=2, order of schedules", list(steps.values()), note))
    peaks = max(figures.values(), key=lambda lines: max(lines["peak_bytes"]))
    return [*rows, peak("the schedule with most", peaks)]


def schedules():
    """The names that the demo knows."""
    try:
        return json.loads(output([DEMO, "--check"]))["schedules"]
    except (ValueError, KeyError) as error:
        raise Problem(f"{DEMO} --check printed no plan with schedules") from error


def kernels(n):
    """the CPU device's products and vector work, one process, both cores"""
    figures = rounds({"kernels": program("kernels_bench")}, n, timeout=560)["kernels"]
    rows = []
    for line, values in figures.items():
        name, _, way = line.rpartition("/")
        if way == "onednn":
            peer = values
        elif line.startswith("gemm"):
            rows.append(compare(line, "us", values, "oneDNN, packed", peer))
        else:
            rows.append(alone(line, "GB/s", values))
    return rows


OWN = (comm, ffn, call, pipeline, schedule, partition, demo, kernels)
GROUPS = {group.__name__: group for group in (*OWN, *bench_hosts.GROUPS, *bench_jax.GROUPS, *bench_train.GROUPS)}
