"""The rows of `./lamella bench` that need a host: operators called from PyTorch, beside the C call and
plain torch with gloo.

Host programs are Python, in tests/bench/hosts, and run in .venv. Ratios are ours over the peer's time.
Invariant: both sides of a ratio come from the same round, and of one program.
"""

from bindings.cli import venv
from bindings.cli.bench_figures import alone, compare, require, rounds
from bindings.cli.common import ROOT

HOSTS = ROOT / "tests" / "bench" / "hosts"
ONE_THREAD = ["OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1"]


def program(name, *arguments, ranks=0):
    """The command of a host program; by `ranks` ranks of one thread each, where it has ranks."""
    path = f"PYTHONPATH={ROOT / 'bindings' / 'python'}"
    run = [venv.python(), "-B", str(HOSTS / name), *arguments]
    if not ranks:
        return ["env", path, *run]
    return ["env", path, *ONE_THREAD, str(ROOT / "lamella"), "run", "--no-prefix", "-n", str(ranks), *run]


def hosts(n):
    """PyTorch: a call above the C call, collectives and transfers against gloo"""
    return torch_call(n) + torch_comm(n)


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


def torch_comm(n):
    figures = rounds({"transfers in torch": program("torch_comm.py", ranks=2)}, n)["transfers in torch"]
    kinds = ("all_reduce", "all_gather", "one_way")
    require(figures, *(f"{kind}/{size}/gloo" for kind in kinds for size in (64, 16 << 20)))
    rows = []
    for line, values in figures.items():
        case, _, side = line.rpartition("/")
        if side == "gloo":
            peer = values
        else:
            size = int(case.rpartition("/")[2])
            goal = "<= 0.20" if size <= 4 << 20 else "<= 0.25"
            rows.append(compare(f"torch {case}", "us", values, "gloo", peer, goal))
    return rows


GROUPS = (hosts,)  # what bench_rows.py adds to its own
