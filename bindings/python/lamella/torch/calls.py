"""How operators are called from Python: raising lamella.Error, past autograd where it is off.

Torch's stable ABI lets a kernel say why it failed, not raise what it likes. An operator's Python
objects are given classes that catch what torch raised, which costs nothing where nothing is raised.
Under torch.no_grad torch still calls the kernel for its Autograd key, which is Python and sorts all
arguments twice: 2-3 us for nothing. The same classes have such a call go straight to its device.
Invariant: what is no failure of the library's leaves as torch raised it; and only calls on ordinary
tensors, under no mode and no transform, that could see the difference, pass autograd by.
Leaves what a status means to lamella.errors, calls with a gradient to autograd.py.
"""

import torch
from torch import _C

from lamella import errors

try:  # private, so not certain to stay
    AUTOGRAD = _C.DispatchKey.AutogradFunctionality
    exclude = _C._dispatch_tls_set_dispatch_key_excluded
    excluded = _C._dispatch_tls_is_dispatch_key_excluded
    function_modes, dispatch_modes = _C._len_torch_function_stack, _C._len_torch_dispatch_stack
    transforms = _C._are_functorch_transforms_active
    HAS_KEYS = True
except AttributeError:
    HAS_KEYS = False

enabled, inference = torch.is_grad_enabled, torch.is_inference_mode_enabled
ORDINARY = {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, list, tuple}


def calling(op, has_autograd):
    """The `__call__` of an object of torch's whose `_op` is op: looking that up there would cost as
    much as asking for the mode."""
    may_skip = has_autograd and HAS_KEYS

    def call(self, /, *args, **kwargs):
        try:
            if inference() or enabled() or not (may_skip and may_pass(args, kwargs)):
                return op(*args, **kwargs)
            try:
                exclude(AUTOGRAD, True)  # in here, since a signal's handler may raise after it
                return op(*args, **kwargs)
            finally:
                exclude(AUTOGRAD, False)
        except RuntimeError as raised:
            error = errors.of(raised)
            if error is None or error is raised:
                raise
        try:
            raise error
        finally:
            del error  # its traceback has this frame, and that the tensors

    return call


def may_pass(args, kwargs):
    """Whether nobody could see that autograd was not asked."""
    return (
        ORDINARY.issuperset(map(type, args))
        and ORDINARY.issuperset(map(type, kwargs.values()))
        and not (function_modes() or dispatch_modes() or transforms() or excluded(AUTOGRAD))
    )


def own(packet, has_gradient):
    """torch.ops.lamella.NAME and its overloads are called so from now on. On a torch whose objects
    are made in another way they go on to raise RuntimeError; lamella.errors.of reads it."""
    out = getattr(packet, "out", None)
    for one, has_autograd in (packet.default, has_gradient), (out, True), (packet, has_gradient):
        kind, op = type(one), getattr(one, "_op", None)
        if callable(op):
            members = {"__call__": calling(op, has_autograd), "__slots__": ()}
            try:
                one.__class__ = type(kind.__name__, (kind,), members)
            except TypeError:
                return
