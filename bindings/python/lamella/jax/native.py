"""The C library's shape inference, through ctypes, and dtypes as it counts them.

Leaves finding the library, its errors and groups to lamella.library and lamella.group.
"""

import ctypes
from functools import cache

import numpy

from lamella import library

MAX_DIMS, MAX_OUTPUTS = 8, 8


@cache
def libraries():
    """liblamella.so.0 and liblamella_xla.so, which finds the first by its name, loaded."""
    lam, adapter = library.native(), ctypes.CDLL(library.path("liblamella_xla.so"))
    lam.lam_infer.argtypes = [ctypes.c_void_p, ctypes.POINTER(Call), ctypes.POINTER(Inferred)]
    lam.lam_group_use.argtypes = [ctypes.c_int64, ctypes.c_int32]
    return lam, adapter


def use_rank(group, rank):
    """This thread's calls of a group are those of `rank` from here on."""
    library.check(libraries()[0].lam_group_use(group.handle, rank))


# -- structs, as in lamella.h --


class DataType(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    ]


class Tensor(ctypes.Structure):  # DLTensor
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class AttrValue(ctypes.Union):
    _fields_ = [
        ("i", ctypes.c_int64),
        ("f", ctypes.c_double),
        ("ints", ctypes.POINTER(ctypes.c_int64)),
        ("s", ctypes.c_char_p),
    ]


class Attr(ctypes.Structure):
    _fields_ = [("type", ctypes.c_uint32), ("n", ctypes.c_uint32), ("v", AttrValue)]


class Call(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("op", ctypes.c_uint32),
        ("inputs", ctypes.POINTER(ctypes.POINTER(Tensor))),
        ("outputs", ctypes.c_void_p),
        ("attrs", ctypes.POINTER(Attr)),
        ("n_inputs", ctypes.c_uint32),
        ("n_outputs", ctypes.c_uint32),
        ("n_attrs", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_uint64),
    ]


class Shape(ctypes.Structure):
    _fields_ = [
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("dims", ctypes.c_int64 * MAX_DIMS),
    ]


class Inferred(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("n_outputs", ctypes.c_uint32),
        ("outputs", ctypes.POINTER(Shape)),
        ("scratch_bytes", ctypes.c_uint64),
        ("n_chunks", ctypes.c_uint32),
        ("capturable", ctypes.c_uint32),
    ]


# -- dtypes: DLPack's (code, bits) --

BY_CODE = {
    (0, 8): "int8",
    (0, 16): "int16",
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (1, 16): "uint16",
    (1, 32): "uint32",
    (1, 64): "uint64",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
    (10, 8): "float8_e4m3fn",
    (12, 8): "float8_e5m2",
}
BY_NAME = {name: code for code, name in BY_CODE.items()}


def data_type(dtype):
    name = numpy.dtype(dtype).name
    if name not in BY_NAME:
        raise TypeError("lamella: dtype %s is not one that DLPack and Lamella share" % name)
    return DataType(*BY_NAME[name], 1)


def dtype_number(dtype):
    """A row's attribute `dtype`: code | bits << 8."""
    found = data_type(dtype)
    return found.code | found.bits << 8


# -- shape inference --


def make_attr(kind, value):
    """A lam_attr, and what it points to, which must live as long."""
    if value is None:
        return Attr(0, 0, AttrValue(i=0)), None
    if kind == "i":
        return Attr(1, 0, AttrValue(i=int(value))), None
    if kind == "f":
        return Attr(2, 0, AttrValue(f=float(value))), None
    if kind == "I":
        ints = (ctypes.c_int64 * len(value))(*value)
        return Attr(3, len(value), AttrValue(ints=ints)), ints
    text = value.encode()
    return Attr(4, len(text), AttrValue(s=text)), text


def make_tensor(shape, dtype, transposed):
    """A DLTensor without data; a transposed [K, N] is what the row calls [N, K]."""
    n = len(shape)
    turned = transposed and n == 2  # the library refuses weights of other dimensions
    dims = (ctypes.c_int64 * n)(*(reversed(shape) if turned else shape))
    steps = (ctypes.c_int64 * n)(1, shape[1]) if turned else None
    t = Tensor(None, 1, 0, n, data_type(dtype), dims, steps, 0)
    return t, (dims, steps)


def infer(row, inputs, attrs):
    """The (shape, dtype name) of each of the row's outputs, None where its rule says it is absent.

    inputs: (shape, dtype, transposed) or None for each; attrs: {name: value}.
    """
    made = [make_tensor(*given) if given else None for given in inputs]
    pointers = (ctypes.POINTER(Tensor) * len(made))(
        *(ctypes.pointer(m[0]) if m else None for m in made)
    )
    listed = [make_attr(a.type, attrs.get(a.name)) for a in row.attributes]
    values = (Attr * max(1, len(listed)))(*(value for value, _ in listed))
    call = Call(struct_size=ctypes.sizeof(Call), op=row.id)
    call.inputs, call.n_inputs = pointers, len(made)
    call.attrs, call.n_attrs = values, len(listed)
    shapes = (Shape * MAX_OUTPUTS)()
    out = Inferred(ctypes.sizeof(Inferred), MAX_OUTPUTS, shapes)
    library.check(libraries()[0].lam_infer(None, ctypes.byref(call), ctypes.byref(out)))
    return [read_shape(shapes[i]) for i in range(out.n_outputs)]


def read_shape(shape):
    if shape.ndim < 0:
        return None
    return tuple(shape.dims[: shape.ndim]), BY_CODE[shape.dtype.code, shape.dtype.bits]
