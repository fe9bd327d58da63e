"""Packed weights: laid out as this machine multiplies them fastest, for inference.

A packed weight is a uint8 tensor that operators take in the weight's place; it has no gradient, and
another kind of machine refuses it. Modules keep both: the packed copy is used where gradients are
off, and made again when its weight has changed. Torch does not note changes through .data, nor
does compiled code look: for those, `renew` writes into the copies that are there.
Invariant: what a module computes and saves is its parameters', packed or not.
Leaves the layout to the library.
"""

from collections import namedtuple

import torch

from lamella import library
from lamella.torch import dtypes

ops = torch.ops.lamella
Copy = namedtuple("Copy", "tensor made_from")


def pack_weight(w: torch.Tensor, side: int = 0) -> torch.Tensor:
    """w [N, K] of any strides of which one is 1 -> uint8 [N, cols], for products with x; with
    side=1 [K, cols], for those with dy. lamella.Error where this machine packs nothing."""
    code = dtypes.CODES[w.dtype]
    return ops.pack_weight(w.detach(), side=side, cols=library.packed_cols(code, *w.shape, side))


class Packing:
    """A module's packed copies, by the names of its weights."""

    def __init__(self):
        self.copies = {}

    def of(self, name, w):
        """The packed copy of w as it is now; what was compiled has the one of the last `renew`."""
        if torch.compiler.is_compiling():
            return self.copies[name].tensor
        now = state(w)
        if name not in self.copies or self.copies[name].made_from != now:
            self.renew(name, w)
        return self.copies[name].tensor

    @torch.inference_mode(False)  # or only inference mode could write into the copy
    @torch.no_grad()
    def renew(self, name, w):
        """Packs w again, in place where there is a copy of this size."""
        tensor, copy = pack_weight(w), self.copies.get(name)
        if copy and copy.tensor.shape == tensor.shape and copy.tensor.device == tensor.device:
            tensor = copy.tensor.copy_(tensor)
        self.copies[name] = Copy(tensor, state(w))


def packs(w):
    """Whether its device has packed weights at all."""
    return w.device.type == "cpu"


def state(w):
    """What is another once torch has changed w; a tensor of inference mode has no version."""
    return None if w.is_inference() else w._version, w.data_ptr(), w.dtype
