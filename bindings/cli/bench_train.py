"""The rows of `./lamella bench` about training a decoder over a pipeline of two ranks in PyTorch.

Ratios are ours over the peer's time; both come from the same round, of one program.
"""

import statistics

from bindings.cli import bench_hosts
from bindings.cli.bench_figures import alone, compare, require, rounds
from bindings.cli.bench_hosts import program

MODULES = {"torch": "the same modules", "lamella": "Lamella's linear layers"}
GOALS = {"torch": "<= 0.97", "lamella": "<= 0.60"}
SCHEDULES = ("1f1b", "zbv")


def hosts_train(n):
    """PyTorch: a training step over two ranks, against torch.distributed.pipelining with gloo"""
    figures = rounds({"train step": program("train_step.py", "3", ranks=2)}, n)["train step"]
    require(figures, bench_hosts.SLOWNESS)
    slow = bench_hosts.is_slow(figures[bench_hosts.SLOWNESS])
    sides = [(linear, schedule) for linear in MODULES for schedule in SCHEDULES]
    kinds = ("step", "idle", "simulated")
    require(figures, "step/pipelining", *(f"{kind}/{linear}_{schedule}" for linear, schedule in sides for kind in kinds))
    return [row for side in sides for row in side_rows(figures, slow, *side)]


def side_rows(figures, slow, linear, schedule):
    name, side = f"{MODULES[linear]}, {schedule}", f"{linear}_{schedule}"
    step, peer = figures[f"step/{side}"], figures["step/pipelining"]
    idle = figures[f"idle/{side}"]
    off = [abs(a - b) for a, b in zip(idle, figures[f"simulated/{side}"])]
    return [
        compare(f"train step, {name}", "ms", step, "torch 1F1B, gloo", peer, goal_of(linear, slow)),
        alone(f"train idle off the simulated, {name}", "points", off, "<= 2", f"of {statistics.median(idle):.1f} % idle"),
    ]


def goal_of(linear, slow):
    """Lamella's linear layers have one where torch's own f32 products are slow; elsewhere the ratio is shown."""
    return GOALS[linear] if linear == "torch" or slow else ""


GROUPS = (hosts_train,)  # what bench_rows.py adds to its own
