"""Weight gradients that are added up outside of autograd: in f32, under weights of bf16.

Autograd casts a gradient to its parameter's dtype, so over many micro-batches small ones are lost.
A parameter that was named here keeps no .grad: the rows of the backward add to its `main_grad`
(as Megatron-LM calls it) in place, in one pass with the product.
Invariant: main_grad is f32, of the parameter's shape, and only ever added to; who steps sets it to
zero.
Leaves when gradients of data-parallel ranks are summed to who owns the step.
"""

from __future__ import annotations

from collections import namedtuple

import torch

from lamella import errors, operators
from lamella.torch import dtypes

MARK = "_lamella_accumulates_into"
# owner: None where a parameter marks itself; view: of it, or None; shared: modules.Shared, or None
Mark = namedtuple("Mark", "owner name view shared")
in_use = False  # no call pays for looking while nobody accumulates


def accumulate_grads(
    module: torch.nn.Module, name: str = "main_grad"
) -> list[torch.nn.Parameter]:
    """From now on the split layers in `module` add their weights' gradients to an attribute `name`
    of each parameter, an f32 tensor, made here as zeros where there is none. .grad stays None.

    Any f32 tensor of the parameter's shape may be put there, such as a part of one buffer. Outside
    of torch.compile only. A copy of the module, or one that was loaded, has ordinary gradients
    until this is called on it. Gives the parameters. Backwards raise InvalidArgument where the
    attribute has another shape."""
    from lamella.torch.modules import Split

    global in_use
    in_use = True
    found = []
    for split in module.modules():
        named = split.named_parameters(recurse=False) if isinstance(split, Split) else ()
        for own, parameter in named:
            if parameter.requires_grad:
                setattr(parameter, MARK, Mark(None, name, None, split.shared.get(own)))
                found.append(parameter)
    for parameter in found:
        if getattr(parameter, name, None) is None:
            setattr(parameter, name, torch.zeros_like(parameter, dtype=torch.float32))
    return found


def refuse_compiling(parameter):
    """A compiled backward would not see the mark, and leave main_grad alone."""
    if hasattr(parameter, MARK):
        raise errors.Unimplemented("accumulate_grads: not inside of torch.compile")


def is_marked(parameter):
    return in_use and hasattr(parameter, MARK)


def seen(parameter, view):
    """view(parameter), whose gradient goes to the same view of where the parameter's does."""
    found = view(parameter)
    if is_marked(parameter):
        setattr(found, MARK, getattr(parameter, MARK)._replace(owner=parameter, view=view))
    return found


def marks(named):
    """{name: mark} of the tensors in {name: tensor} whose gradients are added up, with owners."""
    found = {}
    for tensor_name, t in named:
        mark = getattr(t, MARK, None)
        if mark:  # a parameter's own names no owner: that would be a cycle
            found[tensor_name] = mark if mark.owner is not None else mark._replace(owner=t)
    return found


def target(mark):
    """The tensor that a mark's gradient is added to, and what is to be called then, or None."""
    owner, into = mark.owner, getattr(mark.owner, mark.name)
    if into.shape != owner.shape:
        raise errors.InvalidArgument(
            "%s: found %s, expected the parameter's shape %s"
            % (mark.name, list(into.shape), list(owner.shape)),
            operators.INVALID_ARGUMENT,
        )
    view = mark.view or (lambda t: t)
    if mark.shared is None:
        return view(into), None
    own = torch.zeros_like(into)  # what is there already is a sum over the ranks
    return view(own), lambda: into.add_(mark.shared.summed(own))


def run(row, inputs, results, marks, needs, **attributes):
    """Calls a row whose `results` are gradients of the inputs named there, adding those with a mark
    to their targets. -> {name: gradient} of the others in `needs`."""
    pairs = zip(inputs, row.inputs)
    inputs = [readable(t.detach(), tensor.name.startswith("w")) for t, tensor in pairs]
    expected, outputs, late = operators.infer(row.name, inputs, **attributes), {}, []
    for output, name, (shape, code) in zip(row.outputs, results, expected):
        if name in marks and name in needs:
            outputs[name], finish = target(marks[name])
            late += [finish] if finish else []
        elif output.optional and name not in needs:
            outputs[name] = None
        else:  # zeros, where it would be added to
            outputs[name] = inputs[0].new_zeros(shape, dtype=dtypes.CODED[code])
    operators.run(row.name, inputs, list(outputs.values()), acc=1, **attributes)
    for finish in late:
        finish()
    return {name: t for name, t in outputs.items() if t is not None and name not in marks}


def readable(t, weight):
    """t, or a copy where the library would refuse its strides: rows lie side by side, or a
    weight's columns."""
    if t.is_contiguous():
        return t
    if t.dim() == 2 and t.stride(1) == 1 and t.stride(0) >= t.shape[1]:
        return t
    return t if weight and t.stride(0) == 1 else t.contiguous()
