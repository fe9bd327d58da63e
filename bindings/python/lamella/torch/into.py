"""The overload `out` of an operator: its results are written into tensors of the caller.

A result that is large costs its memory anew in each call (pages that the system clears); a loop
that gives the same tensors every time pays for them once.
Invariant: such a call is no part of an autograd graph, nor of a compiled one: compilers know the
order of calls by their results, and would move or drop those that write to given tensors.
Leaves shapes, dtypes and strides of the given tensors to the library.
"""

import torch
from torch import _C

from lamella import errors
from lamella.torch.autograd import HAS_KEYS

library = torch.library.Library("lamella", "IMPL")


def names(row):
    """The keywords of the given tensors: the outputs' names, out_ before an input's."""
    return ["out_" * (o.name in row.arguments) + o.name for o in row.outputs]


def register(row, operator):
    """Refuses the overload where it would be compiled, or differentiated."""
    keywords = names(row)

    def fake(*args, **kwargs):
        raise errors.Unimplemented(
            "%s.out is not compiled: call it without out, or in a function under "
            "torch.compiler.disable" % row.name
        )

    def below_autograd(keys, *args, **kwargs):
        tensors = (*args, *(kwargs[name] for name in keywords))
        if torch.is_grad_enabled() and _C._any_requires_grad(*tensors):
            raise errors.Unimplemented(
                "%s: a tensor requires a gradient, which a result that is given has none of: "
                "call it under torch.no_grad()" % row.name
            )
        with _C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & _C._after_autograd_keyset, *args, **kwargs)

    torch.library.register_fake(operator, fake)
    if HAS_KEYS:
        library.impl(row.name + ".out", below_autograd, "Autograd", with_keyset=True)
    else:
        library.impl(row.name + ".out", torch.library.fallthrough_kernel, "Autograd")
