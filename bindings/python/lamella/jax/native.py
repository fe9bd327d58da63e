"""The C library through ctypes: its operator table, shape inference, groups, and its errors.

Invariant: liblamella.so.0 is loaded once, before liblamella_xla.so, which finds it by its name.
Leaves JAX to the other files.
"""

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import numpy

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[3]
MAX_DIMS, MAX_OUTPUTS, ID_BYTES = 8, 8, 128


class Error(RuntimeError):
    """What Lamella refused, in its own words; `status` is the lam_status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


# -- finding the libraries --


def candidates():
    """Folders of both libraries: named by the user, inside the package, or built in a checkout."""
    named = os.environ.get("LAMELLA_LIBRARY_DIR")
    if named:
        yield Path(named), Path(named)
        return
    yield HERE.parent / "lib", HERE.parent / "lib"
    yield CHECKOUT / "bazel-bin/abi", CHECKOUT / "bazel-bin/bindings/xla"


def find():
    tried = []
    for library, adapter in candidates():
        pair = library / "liblamella.so.0", adapter / "liblamella_xla.so"
        if all(path.exists() for path in pair):
            return pair
        tried += [str(path) for path in pair if not path.exists()]
    raise ImportError(
        "lamella.jax: not found: %s; in a checkout, ./lamella build makes them" % ", ".join(tried)
    )


@lru_cache(maxsize=None)
def libraries():
    """liblamella.so.0 and liblamella_xla.so, loaded."""
    library, adapter = find()
    lam = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(lam, name)
        function.restype, function.argtypes = result, arguments
    return lam, ctypes.CDLL(str(adapter))


def check(status):
    if status != 0:
        raise Error(status, libraries()[0].lam_last_error().decode(errors="replace"))


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


class GroupId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * ID_BYTES)]


class GroupDesc(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("deadline_ms", ctypes.c_uint32),
        ("first_deadline_ms", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("engine", ctypes.c_char_p),
        ("id", GroupId),
    ]


class GroupInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("poison", ctypes.c_int32),
        ("engine", ctypes.c_char_p),
        ("error", ctypes.c_char_p),
        ("operations", ctypes.c_uint64),
        ("waits", ctypes.c_uint64),
        ("sleeps", ctypes.c_uint64),
    ]


POINTER, STATUS = ctypes.c_void_p, ctypes.c_int32
FUNCTIONS = {
    "lam_last_error": (ctypes.c_char_p, []),
    "lam_version": (ctypes.c_uint32, []),
    "lam_op_row": (ctypes.c_char_p, [ctypes.c_uint32]),
    "lam_infer": (STATUS, [POINTER, ctypes.POINTER(Call), ctypes.POINTER(Inferred)]),
    "lam_group_id_create": (STATUS, [ctypes.POINTER(GroupId)]),
    "lam_group_create": (
        STATUS,
        [POINTER, ctypes.POINTER(GroupDesc), ctypes.POINTER(POINTER)],
    ),
    "lam_group_create_from_env": (STATUS, [POINTER, POINTER, ctypes.POINTER(POINTER)]),
    "lam_group_get_info": (STATUS, [POINTER, ctypes.POINTER(GroupInfo)]),
    "lam_group_handle": (ctypes.c_int64, [POINTER]),
    "lam_group_use": (STATUS, [ctypes.c_int64, ctypes.c_int32]),
    "lam_group_destroy": (None, [POINTER]),
}

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
    listed = [make_attr(a.kind, attrs.get(a.name)) for a in row.attrs]
    values = (Attr * max(1, len(listed)))(*(value for value, _ in listed))
    call = Call(struct_size=ctypes.sizeof(Call), op=row.id)
    call.inputs, call.n_inputs = pointers, len(made)
    call.attrs, call.n_attrs = values, len(listed)
    shapes = (Shape * MAX_OUTPUTS)()
    out = Inferred(ctypes.sizeof(Inferred), MAX_OUTPUTS, shapes)
    check(libraries()[0].lam_infer(None, ctypes.byref(call), ctypes.byref(out)))
    return [read_shape(shapes[i]) for i in range(out.n_outputs)]


def read_shape(shape):
    if shape.ndim < 0:
        return None
    return tuple(shape.dims[: shape.ndim]), BY_CODE[shape.dtype.code, shape.dtype.bits]
