"""What the cases of torch_ranks.py are made with: the whole problem, this rank's part of it, and how
near the two must be. Every rank makes the same whole problem from LAMELLA_TEST_SEED.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bindings/python")]

import torch  # noqa: E402

import lamella.torch  # noqa: E402, F401
from lamella import library  # noqa: E402

CASES = {}
ops = torch.ops.lamella
F = torch.nn.functional
T, K, N, WIDTH = 11, 10, 7, 9  # tokens, in, out, ffn width: nothing divides evenly
torch.set_num_threads(1)


def case(function):
    CASES[function.__name__] = function
    return function


def mine(t, dim, group, gated=False):
    """This rank's part of a whole tensor, contiguous."""
    total = t.shape[dim] // (2 if gated else 1)
    pieces = library.shard(total, group.rank, group.size, gated=gated)
    return torch.cat([t.narrow(dim, b, e - b) for b, e in pieces], dim).detach().contiguous()


def check(*pairs):
    """Sums of at most 64 products in f32, of terms below 64, through at most three layers."""
    for ours, whole in pairs:
        torch.testing.assert_close(ours.double(), whole, rtol=1e-4, atol=3 * 64 * 64 * 2.0**-24)


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def whole(*shapes):
    return [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in shapes]


def as_f32(*tensors):
    return leaves(*[t.float() for t in tensors])


def weigh(y):
    """A loss whose gradient is different everywhere."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()


def own_loss(y, whole_y, dim, group):
    """The part of `weigh(whole_y)` that this rank's y makes up."""
    weights = torch.linspace(-1, 1, whole_y.numel(), dtype=torch.float64).reshape(whole_y.shape)
    return (y * mine(weights, dim, group).to(y.dtype)).sum()
