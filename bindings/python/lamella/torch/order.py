"""Keeps operators that communicate in the order in which they were written, under torch.compile.

Compilers drop operators whose results are unused, merge equal ones and move independent ones;
peers then wait for each other for ever. Torch's effect tokens say that none of this may be, in the
backward too, and its graphs obey. Inductor obeys but in one thing: it notes the order of effects by
the names of buffers and looks them up by the names of operations (torch 2.10 to 2.13), so its
scheduler moves them. `enforce` notes them under the right names as well.
Invariant: an operator that cannot be kept in order is not compiled: on a torch without effect
tokens it stays outside of compiled graphs (fullgraph=True then says so).
"""

import sys

import torch

from lamella import errors

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
        torch._dynamo.disallow_in_graph([operator, operator.overloadpacket])


def enforce():
    """Called whenever an operator is traced: by then Inductor is there, if it will be used."""
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering and HAS_EFFECTS:
        effects = torch.ops.higher_order.with_effects
        current = getattr(lowering, "lowerings", {}).get(effects)
        if current and not getattr(current, "keeps_order", False):
            lowering.lowerings[effects] = in_order(current, lowering)


def in_order(lower, lowering):
    """Inductor's lowering of an operator with an effect, and then the edge that it forgets."""

    def lower_in_order(token, operator, *args, **kwargs):
        try:
            graph = lowering.V.graph
            deps, operations = graph.additional_star_deps, graph.operations
            previous = {last.get_name() for last in graph.effectful_ops.values()}
        except AttributeError:
            raise errors.Unimplemented(
                "this torch's Inductor keeps effects in a way that Lamella does not know; "
                "use another backend, or no torch.compile around operators that communicate"
            ) from None
        before = len(operations)
        result = lower(token, operator, *args, **kwargs)
        for new in operations[before:]:
            deps[new.get_operation_name()].update(previous)
        return result

    lower_in_order.keeps_order = True
    return lower_in_order
