"""How an operator that has a gradient is called: its kernel for torch's Autograd key.

Torch's own register_autograd does the same for any operator, at several times the cost of the call:
it binds arguments, fills in defaults and sets guards each time. Here a call on ordinary tensors
goes on to its device at once, what is saved is what the backward names, and defaults are filled in
when a gradient is asked for.
Invariant: tensors that are not ordinary (fake, functional, traced, someone's own) go below
autograd as torch sends them, by the keys that the call came with.
Leaves what a gradient is to gradients.py.
"""

from functools import partial

import torch
from torch import _C

from lamella import errors
from lamella.torch import accumulate

NEEDED = ("_AutoDispatchBelowAutograd", "_after_autograd_keyset", "_any_requires_grad")
HAS_KEYS = all(hasattr(_C, name) for name in NEEDED)  # private, so not certain to stay
DEVICES = ("CPU", "CUDA")
library = torch.library.Library("lamella", "IMPL")


def install(row, operator, entry, run):
    """Gives `operator` a gradient: `entry` says what is saved, run(ctx, grads, needs) is
    {input: gradient} of the inputs that `needs` names."""
    save, gradients = saver(row, entry), gradients_of(row, entry, run)
    if HAS_KEYS and hasattr(operator, "_handle"):
        kernel = kernel_of(operator, function_of(row, save, gradients))
        library.impl(row.name, kernel, "Autograd", with_keyset=True)
    else:
        torch.library.register_autograd(
            operator,
            lambda ctx, *grads: gradients(ctx, grads, ctx.needs_input_grad),
            setup_context=lambda ctx, inputs, output: save(ctx, inputs, output),
        )


def without(row):
    """An operator that has no gradient: autograd passes it by, and what it gives needs none."""
    library.impl(row.name, torch.library.fallthrough_kernel, "Autograd")


def kernel_of(operator, function):
    """Ordinary tensors have the keys of their device and no other: those calls go straight."""
    redispatch = operator._handle.redispatch_boxed
    ordinary = {}
    for device in DEVICES:
        keys = _C.DispatchKeySet(getattr(_C.DispatchKey, device))
        with_autograd = keys.add(getattr(_C.DispatchKey, "Autograd" + device))
        ordinary[with_autograd.raw_repr()] = partial(redispatch, keys)
    straight, general = super(torch.autograd.Function, function).apply, function.apply
    wanted, enabled = _C._any_requires_grad, _C.is_grad_enabled

    def kernel(keys, *args):
        call, apply = ordinary.get(keys.raw_repr()), straight
        if call is None:
            call, apply = partial(below_autograd, redispatch, keys), general
        return apply(call, *args) if enabled() and wanted(*args) else call(*args)

    return kernel


def below_autograd(redispatch, keys, *args):
    with _C._AutoDispatchBelowAutograd():
        return redispatch(keys & _C._after_autograd_keyset, *args)


def function_of(row, save, gradients):
    """The row as torch.autograd.Function: apply(call, *args), where call(*args) computes."""

    def forward(ctx, call, *args):
        result = call(*args)
        save(ctx, args, result)
        return result

    def backward(ctx, *grads):
        return None, *gradients(ctx, grads, ctx.needs_input_grad[1:])

    members = dict(forward=staticmethod(forward), backward=staticmethod(backward))
    return type("Backward_" + row.name, (torch.autograd.Function,), members)


def saver(row, entry):
    """save(ctx, args, result) keeps for the backward: the tensors it names, the attributes in
    `rest`, and in `like` the shapes and dtypes of inputs that are not saved."""
    inputs, results = [i.name for i in row.inputs], [o.name for o in row.outputs]
    saved_inputs = [inputs.index(name) for name in entry.saves if name in inputs]
    saved_results = [results.index(name) for name in entry.saves if name in results]
    like = [(name, inputs.index(name)) for name in entry.like]
    constants = [i for i, name in enumerate(results) if name in ("aux", "lse")]
    weights = [(name, i) for i, name in enumerate(inputs) if name[0] in "wb"]
    n, absent = len(inputs), (None,) * len(inputs)

    def save(ctx, args, result):
        given = args[:n] if len(args) >= n else args + absent  # torch leaves out trailing defaults
        kept = [given[i] for i in saved_inputs] + [result[i] for i in saved_results]
        if constants:
            ctx.mark_non_differentiable(*[result[i] for i in constants])
            ctx.set_materialize_grads(False)  # no zeros for them
        ctx.save_for_backward(*kept)
        ctx.rest = args[n:]
        ctx.marks = accumulate.in_use and accumulate.marks((name, given[i]) for name, i in weights)
        ctx.like = {name: (given[i].shape, given[i].dtype) for name, i in like}
        if constants and row.communicates:
            ctx.like[results[0]] = (result[0].shape, result[0].dtype)

    return save


def gradients_of(row, entry, run):
    """A gradient, or None, for each argument of the row. Of rows that save nothing, which are
    linear, it has a gradient itself."""

    def gradients(ctx, grads, needs_grad):
        if entry.saves and torch.is_grad_enabled():
            raise errors.Unimplemented(
                "%s: its gradient has no gradient: not with create_graph=True" % row.name
            )
        wanted = [name for name, need in zip(row.arguments, needs_grad) if need]
        nodes = [node for node, _ in ctx.next_functions if node is not None]  # of those, in order
        needs = {name for name, node in zip(wanted, nodes) if is_used(node)}
        found = run(ctx, grads, needs)
        return tuple(found.get(name) if name in needs else None for name in row.arguments)

    return gradients


def is_used(node):
    """Whether this backward goes on to a node: a backward for some inputs only does not to all. It
    is private to torch to know, and for a leaf in autograd.grad it does not: then it may."""
    try:
        return _C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):
        return True
