"""Weight gradients that are added up outside of autograd: in f32, under weights of bf16.

Autograd casts a gradient to its parameter's dtype, so over many micro-batches small ones are lost.
A parameter that was named here keeps no .grad: the rows of the backward add to its `main_grad`
(as Megatron-LM calls it) in place, in one pass with the product.
Invariant: main_grad is f32, of the parameter's shape, and only ever added to; who steps sets it to
zero.
Leaves when gradients of data-parallel ranks are summed to who owns the step.
"""

import torch

from lamella import errors, operators
from lamella.torch import dtypes

MARK = "_lamella_accumulates_into"  # (owner or None = itself, attribute's name, view or None)
in_use = False  # no call pays for looking while nobody accumulates


def accumulate_grads(module, name="main_grad"):
    """From now on the split layers in `module` add their weights' gradients to an attribute `name`
    of each parameter, an f32 tensor, made here as zeros where there is none. .grad stays None.

    Any f32 tensor of the parameter's shape may be put there, such as a part of one buffer. Outside
    of torch.compile only. A copy of the module, or one that was loaded, has ordinary gradients
    until this is called on it. Gives the parameters."""
    from lamella.torch.modules import Split

    global in_use
    in_use = True
    found = []
    for split in module.modules():
        if isinstance(split, Split):
            found += [p for p in split.parameters(recurse=False) if p.requires_grad]
    for parameter in found:
        setattr(parameter, MARK, (None, name, None))  # no cycle: None is itself
        if getattr(parameter, name, None) is None:
            setattr(parameter, name, torch.zeros_like(parameter, dtype=torch.float32))
    return found


def refuse_compiling(parameter):
    """A compiled backward would not see the mark, and leave main_grad alone."""
    if hasattr(parameter, MARK):
        raise errors.Unimplemented("accumulate_grads: not inside of torch.compile")


def seen(parameter, view):
    """view(parameter), whose gradient goes to the same view of where the parameter's does."""
    found = view(parameter)
    if in_use and hasattr(parameter, MARK):
        setattr(found, MARK, (parameter, getattr(parameter, MARK)[1], view))
    return found


def marks(named):
    """{name: mark} of the tensors in {name: tensor} whose gradients are added up, with owners."""
    found = {}
    for tensor_name, t in named:
        mark = getattr(t, MARK, None)
        if mark:
            owner, name, view = mark
            found[tensor_name] = t if owner is None else owner, name, view
    return found


def target(mark):
    """The tensor that a mark's gradient is added to."""
    owner, name, view = mark
    into = getattr(owner, name)
    if into.shape != owner.shape:
        raise errors.InvalidArgument(
            "%s: found %s, expected the parameter's shape %s"
            % (name, list(into.shape), list(owner.shape)),
            operators.INVALID_ARGUMENT,
        )
    return view(into) if view else into


def run(row, inputs, results, marks, needs, **attributes):
    """Calls a row whose `results` are gradients of the inputs named there, adding those with a mark
    to their targets. -> {name: gradient} of the others in `needs`."""
    pairs = zip(inputs, row.inputs)
    inputs = [readable(t.detach(), tensor.name.startswith("w")) for t, tensor in pairs]
    expected, outputs = operators.infer(row.name, inputs, **attributes), {}
    for output, name, (shape, code) in zip(row.outputs, results, expected):
        if name in marks and name in needs:
            outputs[name] = target(marks[name])
        elif output.optional and name not in needs:
            outputs[name] = None
        else:  # zeros, where it would be added to
            outputs[name] = inputs[0].new_zeros(shape, dtype=dtypes.CODED[code])
    operators.run(row.name, inputs, list(outputs.values()), acc=1, **attributes)
    return {name: t for name, t in outputs.items() if t is not None and name not in marks}


def readable(t, weight):
    """t, or a copy where the library would refuse its strides: rows lie side by side, or a
    weight's columns."""
    if t.is_contiguous():
        return t
    if t.dim() == 2 and t.stride(1) == 1 and t.stride(0) >= t.shape[1]:
        return t
    return t if weight and t.stride(0) == 1 else t.contiguous()
