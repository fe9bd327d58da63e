"""The library's shape inference for JAX's arrays, which are not there yet, and dtypes as it counts
them.

Invariant: weights are JAX's [in, out] and described as [N, K] with strides; nothing has data.
Leaves structs, functions' signatures and errors to lamella.library and lamella.operators.
"""

import ctypes
from functools import cache

import numpy

from lamella import library, operators
from lamella.library import Dtype, Tensor


@cache
def adapter():
    """liblamella_xla.so, which finds liblamella.so.0 by its name, loaded."""
    library.native()
    return ctypes.CDLL(library.path("liblamella_xla.so"))


def use_rank(group, rank):
    """This thread's calls of a group are those of `rank` from here on."""
    library.check(library.native().lam_group_use(group.handle, rank))


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
    return Dtype(*BY_NAME[name], 1)


def dtype_number(dtype):
    """A row's attribute `dtype`: code | bits << 8."""
    found = data_type(dtype)
    return found.code | found.bits << 8


# -- shape inference --


def make_tensor(shape, dtype, transposed):
    """A DLTensor without data; a transposed [K, N] is what the row calls [N, K]. It keeps what it
    points to."""
    n = len(shape)
    turned = transposed and n == 2  # the library refuses weights of other dimensions
    dims = (ctypes.c_int64 * n)(*(reversed(shape) if turned else shape))
    steps = (ctypes.c_int64 * n)(1, shape[1]) if turned else None
    return Tensor(None, 1, 0, n, data_type(dtype), dims, steps, 0)


def infer(row, inputs, attrs):
    """The (shape, dtype name) of each of the row's outputs, None where its rule says it is absent.

    inputs: (shape, dtype, transposed) or None for each; attrs: {name: value}.
    """
    tensors = [make_tensor(*given) if given else None for given in inputs]
    given = {a.name: attrs[a.name] for a in row.attributes if attrs.get(a.name) is not None}
    found = operators.infer_row(row, tensors, given)
    return [each and (each[0], BY_CODE[each[1] & 0xFF, each[1] >> 8]) for each in found]
