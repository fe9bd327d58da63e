"""Layers under torch.autocast: their tensors are cast as those of torch's own linear layers are.

What multiplies by a weight takes its activations, weights and biases in autocast's dtype; gradients
arrive in the dtypes of the tensors that were given. Everything else runs in the dtype it gets.
Invariant: outside of torch.autocast nothing here is called. A weight is cast in each call.
"""

import torch
from torch import _C

LAYERS = ("linear", "linear_col", "linear_row", "ffn")
DEVICES = ("cpu", "cuda")
library = torch.library.Library("lamella", "IMPL")


def register(row, operator):
    if row.name not in LAYERS:
        return
    for device in DEVICES:
        key = "Autocast" + device.upper()
        library.impl(row.name, casting(operator, device, key), key)


def casting(operator, device, key):
    beyond = _C.DispatchKeySet(getattr(_C.DispatchKey, key))

    def kernel(*args):
        dtype = torch.get_autocast_dtype(device)
        with _C._ExcludeDispatchKeyGuard(beyond):
            return operator(*(cast(x, device, dtype) for x in args))

    return kernel


def cast(x, device, dtype):
    """As torch's own autocast: what is floating, but not float64; packed weights are bytes."""
    if not isinstance(x, torch.Tensor) or x.device.type != device:
        return x
    return x.to(dtype) if x.is_floating_point() and x.dtype is not torch.float64 else x
