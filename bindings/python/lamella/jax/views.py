"""A pipeline's tensors as JAX arrays: read where they lie, written by one copy.

Invariant: an array that `borrow` gives is the view's own memory (64-byte aligned, so JAX makes no
copy), and is valid exactly as long; whoever uses it waits for the result.
Leaves how long a view is valid to lamella.pipeline.
"""

import ctypes

import jax
import numpy

from lamella import errors
from lamella.jax import native

CPU = 1, 0  # DLPack's device type and number


class Managed(ctypes.Structure):  # DLManagedTensor; without a deleter, as nothing is handed over
    _fields_ = [("tensor", native.Tensor), ("owner", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_NAME = b"dltensor"


class Lender:
    """What jax.numpy.from_dlpack asks for a view's memory."""

    def __init__(self, view):
        shape = view.shape
        self._dims = (ctypes.c_int64 * len(shape))(*shape)
        kind = native.DataType(view.dtype & 0xFF, view.dtype >> 8, 1)
        tensor = native.Tensor(view.data, *CPU, len(shape), kind, self._dims, None, 0)
        self._managed = Managed(tensor, None, None)

    def __dlpack__(self, **_):
        return _capsule(ctypes.addressof(self._managed), _NAME, None)

    def __dlpack_device__(self):
        return CPU


def borrow(view):
    """A JAX array of the view's memory."""
    return jax.numpy.from_dlpack(Lender(view))


def write(view, array, what):
    """Copies an array into a view, whose shape may be larger and becomes the array's."""
    if native.dtype_number(array.dtype) != view.dtype:
        expected = native.BY_CODE.get((view.dtype & 0xFF, view.dtype >> 8), view.dtype)
        raise errors.InvalidArgument(
            "%s is %s, the edge's dtype is %s" % (what, array.dtype, expected), 3
        )
    shape = view.shape
    if len(shape) != array.ndim or any(n > most for n, most in zip(array.shape, shape)):
        raise errors.InvalidArgument(
            "%s has shape %s, the edge's is at most %s" % (what, array.shape, shape), 3
        )
    if shape != array.shape:
        view.shape = array.shape
    found = numpy.asarray(array)  # waits for it; no copy on the CPU
    numpy.frombuffer(view.memory(), found.dtype)[:] = found.reshape(-1)
