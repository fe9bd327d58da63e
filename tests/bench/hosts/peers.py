"""Two ranks in torch: a group of Lamella and a gloo group over the same processes.

Started by `./lamella run -n 2`. Invariant: both sides run in the same processes, on the same
tensors, in turn; rank 0 alone prints. Leaves what is measured to the programs.
"""

import socket
import time

import torch
import torch.distributed as dist
from figures import show

import lamella.torch


def connect():
    """Lamella's group, after gloo's has met too; one thread for each rank."""
    torch.set_num_threads(1)
    group = lamella.torch.group()
    port = torch.tensor([free_port() if group.rank == 0 else 0])
    port = int(torch.ops.lamella.broadcast(port, group=group.handle))
    address = "tcp://127.0.0.1:%d" % port
    dist.init_process_group("gloo", init_method=address, rank=group.rank, world_size=group.size)
    return group


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_turn(functions, group, rounds, calls=1, after=lambda name: None):
    """Times `calls` calls of each function once a round, in turn, the ranks together, after a round
    that warms up. {name: [us per call of each round, of the slower rank]}. after(name) follows each."""
    times = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            together(group)
            begin = time.perf_counter_ns()
            for _ in range(calls):
                function()
            took = torch.tensor([(time.perf_counter_ns() - begin) / calls / 1e3])
            took = torch.ops.lamella.all_gather(took, group=group.handle)
            if i:
                times[name].append(took.max().item())
            after(name)
    return times


def show_f32_product(group, rounds=5):
    """How many times as long torch's own f32 product takes as Lamella's, oneDNN's: some goals suppose
    a machine where it is slow (MKL on AMD), and are judged where it is."""
    x, w = torch.randn(512, 4096), torch.randn(4096, 4096)
    sides = {
        "torch": lambda: torch.nn.functional.linear(x, w),
        "lamella": lambda: torch.ops.lamella.linear(x, w),
    }
    with torch.inference_mode():
        times = in_turn(sides, group, rounds)
    if group.rank == 0:
        show("f32_product", [a / b for a, b in zip(times["torch"], times["lamella"])], "x")


def together(group):
    torch.ops.lamella.all_reduce(torch.zeros(1), group=group.handle)
