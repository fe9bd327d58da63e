"""The rows of `./lamella bench` that need a host: operators called from PyTorch, beside the C call and
plain torch with gloo.

Host programs are Python, in tests/bench/hosts, and run in .venv. Ratios are ours over the peer's time.
Invariant: both sides of a ratio come from the same round, and of one program.
"""

import statistics

from bindings.cli import venv
from bindings.cli.bench_figures import alone, compare, require, rounds
from bindings.cli.common import ROOT

HOSTS = ROOT / "tests" / "bench" / "hosts"
SLOWNESS = "f32_product"  # torch's own time over oneDNN's, as a program prints it
CROSSINGS = {  # collectives and transfers, and what is to be said of a row's peer
    "all_reduce": "",
    "all_gather": "",
    "reduce_scatter": "gloo has none: torch copies the operand, reduces that on all ranks, copies the share",
    "broadcast": "in place on both sides",
    "reduce": "in place on both sides",
    "one_way": "",
}
ONE_THREAD = ["OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1"]


def program(name, *arguments, ranks=0):
    """The command of a host program; by `ranks` ranks of one thread each, where it has ranks."""
    path = f"PYTHONPATH={ROOT / 'bindings' / 'python'}"
    run = [venv.python(), "-B", str(HOSTS / name), *arguments]
    if not ranks:
        return ["env", path, *run]
    return ["env", path, *ONE_THREAD, str(ROOT / "lamella"), "run", "--no-prefix", "-n", str(ranks), *run]


def hosts(n):
    """PyTorch: a call above the C call; the ffn at tp=2, collectives and transfers against torch with gloo; the wheel's oneDNN"""
    return torch_call(n) + torch_ffn(n) + torch_comm(n) + wheel_onednn(n)


def torch_call(n):
    goals = {"inference": "<= 2", "no_grad": "<= 5", "grad": "<= 12"}
    figures = rounds({"calls from torch": program("torch_call.py")}, n)["calls from torch"]
    require(figures, *(f"all_reduce_above_{mode}" for mode in goals), *(f"linear_above_{mode}" for mode in goals))
    rows = []
    for line, values in figures.items():
        name, _, mode = line.partition("_above_")
        if mode:
            rows.append(alone(f"torch {name} above its C call, {mode}", "us", values, goals.get(mode, "")))
    return rows


def torch_ffn(n):
    commands = {
        "ffn in torch": program("torch_ffn.py", "3", ranks=2),
        "oneDNN": [str(ROOT / "bazel-bin" / "tests" / "bench" / "ops_bench"), "3", "f32"],
    }
    measured = rounds(commands, n, timeout=560)
    figures = measured["ffn in torch"]
    require(figures, SLOWNESS)
    slow = is_slow(figures.pop(SLOWNESS))
    goals = {"bf16_m512": "<= 0.90", "bf16_m1": "<= 0.55", "f32_m512": "<= 0.45" if slow else ""}
    require(figures, *(f"ffn_{case}_{side}" for case in goals for side in ("gloo", "packed")))
    note = "tp=2, H=4096 F=11008, gelu, inference, one thread a rank"
    rows = []
    for line, values in figures.items():
        case, _, side = line.removeprefix("ffn_").rpartition("_")
        if side == "gloo":
            peer = values
        else:
            goal = goals.get(case, "") if side == "packed" else ""
            rows.append(compare(f"torch ffn {case}, {side} weights", "us", values, "torch + gloo", peer, goal, note))
    ours, theirs = figures["ffn_f32_m512_packed"], measured["oneDNN"]["ffn_f32_m512_onednn"]
    goal = "" if slow else "<= 1.10"
    rows.append(compare("torch ffn f32_m512, packed weights", "us", ours, "oneDNN's gemms", theirs, goal, note))
    return rows


def torch_comm(n):
    figures = rounds({"transfers in torch": program("torch_comm.py", ranks=2)}, n)["transfers in torch"]
    require(figures, *(f"{kind}/{size}/gloo" for kind in CROSSINGS for size in (64, 16 << 20)))
    rows = []
    for line, values in figures.items():
        case, _, side = line.rpartition("/")
        if side == "gloo":
            peer = values
        else:
            kind, _, size = case.partition("/")
            goal = "<= 0.20" if int(size) <= 4 << 20 else "<= 0.25"
            name = f"torch {case}" + (", result in new memory" if side == "functional" else "")
            rows.append(compare(name, "us", values, "gloo", peer, goal if side == "lamella" else "", CROSSINGS[kind]))
    return rows


def wheel_onednn(n):
    """What is inside the wheel is as fast as what is installed beside it."""
    figures = rounds({"the wheel's oneDNN": program("wheel_onednn.py")}, n)["the wheel's oneDNN"]
    cases = [f"{dtype}_{size}" for size in ("m512", "m64") for dtype in ("f32", "bf16")]
    require(figures, *(f"product_{case}_{side}" for case in cases for side in ("wheel", "debian")))
    note = "K=N=4096, CPU time of one thread; without Debian's libdnnl the wheel computes with its own"
    rows = []
    for case in cases:
        ours, theirs = (figures[f"product_{case}_{side}"] for side in ("wheel", "debian"))
        goal = "<= 1.05" if case.endswith("m512") else ""  # where nothing but the product counts
        rows.append(compare(f"product {case}, the wheel's oneDNN", "us", ours, "Debian's", theirs, goal, note))
    return rows


def is_slow(ratios):
    """Whether torch's own f32 product takes twice oneDNN's time, as MKL's does on some AMD processors (2.5
    times on the one that the goals came from). Where it does not, the goal is on oneDNN's time."""
    return statistics.median(ratios) >= 2


GROUPS = (hosts,)  # what bench_rows.py adds to its own
