"""Loads the native adapter and gives each of its operators a fake, a gradient and its order.

Invariant: done once per process, at import; the adapter's schemas are the rows' own (compared).
Leaves shapes to lamella.shapes, gradients to gradients.py, order to order.py, calls from Python to
calls.py.
"""

import atexit
import ctypes

import torch

from lamella import errors, group, library, rows, shapes
from lamella.describe import row as document
from lamella.torch import autocast, calls, dtypes, gradients, into, order


def load():
    """Schemas and kernels, from lamella_torch.so; the library it needs is loaded before it."""
    library.native()
    path = library.path("lamella_torch.so")
    torch.ops.load_library(path)
    adapter = ctypes.CDLL(path)
    adapter.lamella_torch_error.restype = ctypes.c_char_p
    error = adapter.lamella_torch_error()
    if error:
        raise errors.Error("%s: %s" % (path, error.decode()))
    adapter.lamella_torch_ask_tf32(tf32)
    atexit.register(adapter.lamella_torch_ask_tf32, None)  # before there is no Python to ask


@ctypes.CFUNCTYPE(ctypes.c_int)
def tf32():
    """Whether f32 products on CUDA may be tf32 now: what torch's own would be, by
    torch.set_float32_matmul_precision or torch.backends.cuda.matmul."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def fake_of(row):
    """The operator on tensors without data: shapes by the row's rules, sizes maybe symbols."""

    def fake(*args, **kwargs):
        if row.communicates:
            order.enforce()
        values = row.bind(args, kwargs)
        call = describe(row, values)
        like = values[row.inputs[0].name]
        results = [result(output, call, values, like) for output in row.outputs]
        return results[0] if len(results) == 1 else tuple(results)

    return fake


def describe(row, values):
    """What the row's shape rules may ask of this call."""
    given = {i.name: values[i.name] for i in row.inputs if values[i.name] is not None}
    rank, size = group.place(values.get("group", 0))
    return shapes.Call(
        shapes={name: tensor.shape for name, tensor in given.items()},
        dtypes={name: tensor.dtype for name, tensor in given.items()},
        values=values,
        first=row.leader,
        rank=rank,
        size=size,
        wide=dtypes.WIDE if row.scaled else {},
        packed=frozenset(name for name, tensor in given.items() if tensor.dtype == torch.uint8),
    )


def result(output, call, values, like):
    dims = output.shape(call) if not output.asked or values[output.name] else None
    return like.new_empty([0] if dims is None else dims, dtype=dtypes.find(output.dtype(call)))


def register(row):
    packet = getattr(torch.ops.lamella, row.name)
    operator = packet.default
    names = [argument.name for argument in operator._schema.arguments]
    if names != row.arguments:
        raise errors.Error(
            "lamella_torch.so was built for another operator table: %s takes %s there, %s here"
            % (row.name, names, row.arguments)
        )
    calls.own(packet, row.name in gradients.BACKWARD)
    packet.__doc__ = document(row, hidden=("acc",))
    torch.library.register_fake(operator, fake_of(row))
    gradients.register(row, operator)
    autocast.register(row, operator)
    if row.communicates:
        order.keep(operator)
    if "out" in packet.overloads():
        into.register(row, packet.out)


load()
ops = torch.ops.lamella
for _row in rows.table().values():
    register(_row)
