"""Lamella in PyTorch: every operator as torch.ops.lamella.<name>.

Importing this registers schemas and kernels (native, over torch's stable ABI), fakes and autograd
for every row of the operator table; `torch.compile(fullgraph=True)` works, and operators that
communicate keep their order in it, backward included. An optional input that is None, or of size
0, is absent; an absent output is a tensor of size 0.

    import torch, lamella.torch
    group = lamella.torch.group()                          # torchrun, or an initialised
    y, _ = torch.ops.lamella.linear_col(x, w, b, group=group.handle)    # torch.distributed
"""

from lamella.torch.register import ops
from lamella.torch.distributed import group

__all__ = ["group", "ops"]
