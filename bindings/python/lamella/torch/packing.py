"""Packed weights: laid out as this machine multiplies them fastest, for inference.

A packed weight is a uint8 tensor that operators take in the weight's place; it has no gradient, and
another kind of machine refuses it. Modules keep both: the packed copy is used where gradients are
off, and made again when its weight has changed.
Invariant: what a module computes and saves is its parameters', packed or not.
Leaves the layout to the library.
"""

from collections import namedtuple

import torch

from lamella import library
from lamella.torch import dtypes

ops = torch.ops.lamella
Copy = namedtuple("Copy", "tensor made_from")


def pack_weight(w, side=0):
    """w [N, K] of any strides of which one is 1 -> uint8 [N, cols], for products with x; with
    side=1 [K, cols], for those with dy. lamella.Error where this machine packs nothing."""
    code = dtypes.CODES[w.dtype]
    return ops.pack_weight(w.detach(), side=side, cols=library.packed_cols(code, *w.shape, side))


class Packing:
    """A module's packed copies, by the names of its weights."""

    def __init__(self):
        self.copies = {}

    def of(self, name, w):
        """The packed copy of w as it is now; what was compiled keeps the one it saw then."""
        if torch.compiler.is_compiling():
            return self.copies[name].tensor
        now = (w._version, w.data_ptr(), w.dtype)
        if name not in self.copies or self.copies[name].made_from != now:
            self.copies[name] = Copy(pack_weight(w), now)
        return self.copies[name].tensor
