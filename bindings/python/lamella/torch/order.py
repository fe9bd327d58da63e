"""Keeps operators that communicate in the order in which they were written, under torch.compile.

Compilers drop operators whose results are unused, merge equal ones and move independent ones;
peers then wait for each other for ever. Torch's effect tokens forbid all three, in the backward
too.
Invariant: an operator that is not kept in order is never compiled: on a torch without effect
tokens it stays outside of compiled graphs (fullgraph=True then says so).
"""

import torch

try:  # private, so not certain to stay
    from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

    HAS_EFFECTS = hasattr(_EffectType, "ORDERED")
except ImportError:
    HAS_EFFECTS = False


def keep(operator):
    """From now on this operator is neither dropped, merged nor moved past another kept one."""
    if HAS_EFFECTS:
        _register_effectful_op(operator, _EffectType.ORDERED)
    else:
        torch.compiler.disallow_in_graph(operator)
