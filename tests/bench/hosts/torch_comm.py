"""Collectives and transfers between two ranks in torch: Lamella's against gloo's, f32.

Sizes are of the whole operand or result; one_way is half of a message there and back. Both sides
write into tensors that are there: gloo always does, Lamella's overload `out` does; `functional` is the
operator itself, whose result is new memory. Gloo's reduce_scatter is torch's: a copy of the operand,
its all-reduce, a copy of the share.
Prints `name/bytes/side figure unit spread`, gloo's line first.

    ./lamella run --no-prefix -n 2 python torch_comm.py [rounds]
"""

import sys

import torch
import torch.distributed as dist
from figures import show
from peers import connect, in_turn

ops = torch.ops.lamella
SIZES = [64, 4096, 65536, 1 << 20, 4 << 20, 16 << 20]


def all_reduce(x, group):
    mine, y = x.clone(), torch.empty_like(x)  # gloo's result takes its operand's place
    return {
        "gloo": lambda: dist.all_reduce(mine),
        "lamella": lambda: ops.all_reduce.out(x, group=group.handle, y=y),
        "functional": lambda: ops.all_reduce(x, group=group.handle),
    }


def all_gather(x, group):
    whole, mine = torch.empty_like(x), x.chunk(group.size)[group.rank]
    return {
        "gloo": lambda: dist.all_gather_into_tensor(whole, mine),
        "lamella": lambda: ops.all_gather.out(mine, group=group.handle, y=whole),
        "functional": lambda: ops.all_gather(mine, group=group.handle),
    }


def reduce_scatter(x, group):
    share = torch.empty_like(x.chunk(group.size)[group.rank])
    return {
        "gloo": lambda: dist.reduce_scatter_tensor(share, x),
        "lamella": lambda: ops.reduce_scatter.out(x, group=group.handle, y=share),
        "functional": lambda: ops.reduce_scatter(x, group=group.handle),
    }


def broadcast(x, group):
    mine = x.clone()  # on both sides the result takes the operand's place
    return {
        "gloo": lambda: dist.broadcast(mine, 0),
        "lamella": lambda: ops.broadcast.out(x, group=group.handle, y=x),
        "functional": lambda: ops.broadcast(x, group=group.handle),
    }


def reduce(x, group):
    mine = x.clone()
    return {
        "gloo": lambda: dist.reduce(mine, 0),
        "lamella": lambda: ops.reduce.out(x, group=group.handle, y=x),
        "functional": lambda: ops.reduce(x, group=group.handle),
    }


def one_way(x, group):
    peer, got, token, shape = 1 - group.rank, torch.empty_like(x), torch.zeros(1), [x.numel()]
    there = dict(group=group.handle, peer=peer)

    def gloo():
        for rank in (0, 1):
            dist.send(x, peer) if group.rank == rank else dist.recv(got, peer)

    def lamella():
        for rank in (0, 1):
            if group.rank == rank:
                ops.send_activation.out(x, token, **there, out_token=token)
            else:
                ops.recv_activation.out(token, shape=shape, **there, y=got, out_token=token)

    def functional():
        for rank in (0, 1):
            if group.rank == rank:
                ops.send_activation(x, token, **there)
            else:
                ops.recv_activation(token, shape=shape, **there)

    return {"gloo": gloo, "lamella": lamella, "functional": functional}


KINDS = (all_reduce, all_gather, reduce_scatter, broadcast, reduce, one_way)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    group = connect()
    with torch.inference_mode():
        for kind in KINDS:
            for size in SIZES:
                sides = kind(torch.zeros(size // 4), group)
                calls = max(8, min(50, (4 << 20) // size))
                times = in_turn(sides, group, rounds, calls)
                messages = 2 if kind is one_way else 1
                for side in sides:
                    values = [us / messages for us in times[side]]
                    if group.rank == 0:
                        show("%s/%d/%s" % (kind.__name__, size, side), values)


main()
