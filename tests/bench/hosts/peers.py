"""Two ranks in torch: a group of Lamella and a gloo group over the same processes.

Started by `./lamella run -n 2`. Invariant: both sides run in the same processes, on the same
tensors, in turn; rank 0 alone prints. Leaves what is measured to the programs.
"""

import socket
import time

import torch
import torch.distributed as dist

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


def together(group):
    torch.ops.lamella.all_reduce(torch.zeros(1), group=group.handle)
