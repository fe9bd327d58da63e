"""The feed-forward block over two ranks: Lamella's against the same in plain torch with gloo.

H=4096 F=11008, gelu, no biases, one thread a rank, the same weights on both sides; inference.
Prints `name figure unit spread`: the peer's line before those that are compared with it; first, how
slow torch's own f32 product is beside oneDNN's.

    ./lamella run --no-prefix -n 2 python torch_ffn.py [rounds]
"""

import sys

import torch
import torch.distributed as dist
from figures import show
from peers import connect, in_turn, show_f32_product

import lamella.torch

H, F = 4096, 11008


def gloo_ffn(x, w1, w2):
    h = torch.nn.functional.gelu(torch.nn.functional.linear(x, w1))
    y = torch.nn.functional.linear(h, w2)
    dist.all_reduce(y)
    return y


def measure(plain, packed, group, m, rounds):
    dtype = plain.w1.dtype
    x = torch.randn(m, H).to(dtype)
    sides = {
        "gloo": lambda: gloo_ffn(x, plain.w1, plain.w2),
        "packed": lambda: packed(x),
        "plain": lambda: plain(x),
    }
    error = (sides["packed"]().float() - sides["gloo"]().float()).abs().max().item()
    assert error < 0.05, "the two sides differ by %g" % error
    times = in_turn(sides, group, rounds, calls=1 if m > 8 else 5)
    if group.rank == 0:
        name = "ffn_%s_m%d" % ("bf16" if dtype == torch.bfloat16 else "f32", m)
        for side in sides:
            show("%s_%s" % (name, side), times[side])


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    group = connect()
    show_f32_product(group)
    for dtype in (torch.bfloat16, torch.float32):
        plain = lamella.torch.ParallelFFN(H, F, "gelu", bias=False, group=group, dtype=dtype)
        packed = lamella.torch.ParallelFFN(H, F, "gelu", bias=False, group=group, dtype=dtype)
        packed.load_state_dict(plain.state_dict())
        packed.pack()
        with torch.inference_mode():
            for m in (512, 1):
                measure(plain, packed, group, m, rounds)


main()
