"""A pipeline's tensors as JAX arrays: read where they lie, on the host and on a GPU.

Invariant: an array that `borrow` gives is the view's own memory (64-byte aligned, so JAX makes no
copy), and is valid exactly as long.
Leaves how long a view is valid to lamella.pipeline, waiting for what reads one to places.py.
"""

import ctypes

import jax
import numpy

from lamella import errors, library
from lamella.jax import native

_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
# A prototype of our own: ctypes.pythonapi's attributes belong to the whole process.
_CAPSULE = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule = _CAPSULE(("PyCapsule_New", ctypes.pythonapi))
_NAME = b"dltensor"  # the capsule points to it


class Managed(ctypes.Structure):
    """DLManagedTensor, with its dimensions. XLA frees it, by free itself: that may be on a thread
    of its own, and after Python has gone."""

    _fields_ = [
        ("tensor", library.Tensor),
        ("owner", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("dims", ctypes.c_int64 * library.MAX_DIMS),
    ]


class Lender:
    """What jax.numpy.from_dlpack asks for a view's memory. stream: that on which it is written,
    where it is a GPU's."""

    def __init__(self, view, stream):
        self.view, self.stream = view, stream

    def __dlpack__(self, stream=None, **_):
        """stream: the handle of that on which it will be read; None: one that is not told."""
        if self.stream is not None and stream is None:
            self.stream.wait()
        elif self.stream is not None:
            self.stream.lead(stream)
        at = _libc.malloc(ctypes.sizeof(Managed))
        managed, shape, dtype = Managed.from_address(at), self.view.shape, self.view.dtype
        managed.dims[: len(shape)] = shape
        dims = ctypes.cast(at + Managed.dims.offset, ctypes.POINTER(ctypes.c_int64))
        kind = library.Dtype(dtype & 0xFF, dtype >> 8, 1)
        managed.tensor = library.Tensor(
            self.view.data, *self.view.device, len(shape), kind, dims, None, 0
        )
        managed.owner, managed.deleter = None, ctypes.cast(_libc.free, ctypes.c_void_p)
        return _capsule(at, _NAME, None)

    def __dlpack_device__(self):
        return self.view.device


def borrow(view, stream=None):
    """A JAX array of the view's memory. stream: the streams.Stream of a view on a GPU."""
    return jax.numpy.from_dlpack(Lender(view, stream))


def fit(view, array, what):
    """Lowers a view's shape to the array's; InvalidArgument where its dtype or shape does not fit."""
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


def write(view, array):
    """Copies an array into a view of the host's memory that it fits."""
    found = numpy.asarray(array)  # waits for it; no copy on the CPU
    numpy.frombuffer(view.memory(), found.dtype)[:] = found.reshape(-1)
