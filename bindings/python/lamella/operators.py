"""Calls of operators from Python on anybody's tensors, outside of any host's autograd or compiler.

    operators.run("linear", [x, w], [y], act="gelu")          # y is written in place
    operators.run("linear_wgrad", [dy, x], [dw], acc=1)       # dw += dy^T x, dw f32
    operators.infer("linear", [x, w])                         # [((5, 3), 8194), None]

Tensors are whatever has DLPack (torch, NumPy, JAX's as inputs), None where one is absent; nothing
is copied. Attributes are the row's, by name.
Invariant: tensors are borrowed for the call, and Python's other threads run meanwhile.
Leaves tensors to exchange.py, checks to the library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_uint32, c_uint64, c_void_p
from operator import index
from typing import Any

from lamella import errors, library, rows
from lamella.exchange import INPUT, OUTPUT, Borrowed
from lamella.library import Shape, Sized, Tensor

INVALID_ARGUMENT = 3
MAX_OUTPUTS = 8


class _Value(ctypes.Union):
    _fields_ = [
        ("i", c_int64),
        ("f", ctypes.c_double),
        ("ints", POINTER(c_int64)),
        ("s", ctypes.c_char_p),
    ]


class Attr(ctypes.Structure):
    _fields_ = [("type", c_uint32), ("n", c_uint32), ("v", _Value)]


class Call(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("op", c_uint32),
        ("inputs", POINTER(POINTER(Tensor))),
        ("outputs", POINTER(POINTER(Tensor))),
        ("attrs", POINTER(Attr)),
        ("n_inputs", c_uint32),
        ("n_outputs", c_uint32),
        ("n_attrs", c_uint32),
        ("flags", c_uint32),
        ("stream", c_void_p),
        ("scratch", c_void_p),
        ("scratch_bytes", c_uint64),
    ]


class Inferred(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_outputs", c_uint32),
        ("outputs", POINTER(Shape)),
        ("scratch_bytes", c_uint64),
        ("n_chunks", c_uint32),
        ("capturable", c_uint32),
        ("chunks_why", c_void_p),
    ]


def run(
    name: str, inputs: Sequence[Any], outputs: Sequence[Any], **attributes: Any
) -> None:
    """Runs an operator; `outputs`, of shapes and dtypes that `infer` tells, are written in place.
    Raises lamella.Error: NotFound for a name that no row has, InvalidArgument for tensors and
    attributes that it does not take; as a group's operator, what Group says."""
    given = [None if t is None else Borrowed(t, INPUT) for t in inputs]
    taken = [None if t is None else Borrowed(t, OUTPUT) for t in outputs]
    call, kept = _describe(_row(name), _tensors(given), _tensors(taken), attributes)
    call.stream = next((b.stream for b in (*given, *taken) if b and b.stream), None)
    library.check(library.native().lam_run(None, ctypes.byref(call)))
    del kept


def infer(
    name: str, inputs: Sequence[Any], **attributes: Any
) -> list[tuple[tuple[int, ...], int] | None]:
    """What `run` would want as outputs: (shape, dtype: code | bits << 8) of each, None where the
    attributes leave one out."""
    given = [None if t is None else Borrowed(t, INPUT) for t in inputs]
    return infer_row(_row(name), _tensors(given), attributes)


def infer_row(row, tensors, attributes):
    """The same for DLTensors, which need no data, and a row of the table."""
    call, kept = _describe(row, tensors, (), attributes)
    shapes = (Shape * MAX_OUTPUTS)()
    found = Inferred(n_outputs=MAX_OUTPUTS, outputs=shapes)
    library.check(library.native().lam_infer(None, ctypes.byref(call), ctypes.byref(found)))
    del kept
    return [
        None if s.ndim < 0 else (tuple(s.dims[: s.ndim]), s.dtype.code | s.dtype.bits << 8)
        for s in shapes[: found.n_outputs]
    ]


def _row(name):
    row = rows.table().get(name)
    if row is None:
        raise errors.NotFound("no operator is called %r" % (name,), 5)
    return row


def _tensors(borrowed):
    return [None if each is None else each.tensor for each in borrowed]


def _describe(row, inputs, outputs, attributes):
    """A Call, and what must live as long as it."""
    call = Call(op=row.id, n_inputs=len(inputs), n_outputs=len(outputs))
    call.inputs, call.outputs = _pointers(inputs), _pointers(outputs)
    call.attrs, kept = _attributes(row, attributes)
    call.n_attrs = len(row.attributes)
    return call, (inputs, outputs, kept)


def _pointers(tensors):
    found = (POINTER(Tensor) * len(tensors))()
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            found[i] = ctypes.pointer(tensor)
    return found


def _attributes(row, given):
    """The attributes' array, those not given at their defaults, and what it points to."""
    unknown = set(given) - {a.name for a in row.attributes}
    if unknown:
        known = ", ".join(a.name for a in row.attributes) or "none"
        raise errors.InvalidArgument(
            "%s: no attribute %r; it has %s" % (row.name, min(unknown), known), INVALID_ARGUMENT
        )
    found, kept = (Attr * len(row.attributes))(), []
    for attr, attribute in zip(found, row.attributes):
        if attribute.name in given:
            kept.append(_set(attr, attribute.type, given[attribute.name]))
    return found, kept


def _whole(value):
    """ctypes cuts off what an int64 cannot hold."""
    if c_int64(index(value)).value != value:
        raise errors.InvalidArgument("attribute: found %d, expected an int64" % value, 3)
    return index(value)


def _set(attr, type, value):
    """Fills one attribute in. Gives what it points to."""
    if type == "s":
        text = value.encode()
        attr.type, attr.n, attr.v.s = 4, len(text), text
        return text
    if type == "I":
        ints = (c_int64 * len(value))(*map(_whole, value))
        attr.type, attr.n, attr.v.ints = 3, len(value), ints
        return ints
    if type == "f":
        attr.type, attr.v.f = 2, float(value)
    else:
        attr.type, attr.v.i = 1, _whole(value)
    return None
