"""Anybody's tensors, as the library takes them: DLTensors, borrowed without a copy.

A tensor's type may have DLPack's C exchange table (`__dlpack_c_exchange_api__`; torch from 2.10
on), which describes one in place and names the stream that it is worked on; the rest (NumPy, JAX)
hands over a capsule (`__dlpack__`).
Invariant: what is borrowed lives as long as the Borrowed that holds it. An output that may only be
read is refused.
Leaves all other checks to the library.
"""

import ctypes
import functools
from ctypes import POINTER, PYFUNCTYPE, c_char_p, c_int32, c_uint32, c_void_p, py_object

from lamella import errors, library
from lamella.library import Tensor

CPU, INPUT, OUTPUT = 1, 0, 1
INVALID_ARGUMENT = 3
MAJOR = 1  # DLPack's, whose structs these are
FROM_OBJECT = PYFUNCTYPE(c_int32, py_object, POINTER(Tensor))
STREAM = PYFUNCTYPE(c_int32, c_int32, c_int32, POINTER(c_void_p))


class Table(ctypes.Structure):  # DLPackExchangeAPI
    pass


Table._fields_ = [
    ("major", c_uint32),
    ("minor", c_uint32),
    ("previous", POINTER(Table)),  # an older major's
    ("allocate", c_void_p),
    ("managed_from_object", c_void_p),
    ("managed_to_object", c_void_p),
    ("tensor_from_object", c_void_p),  # may be NULL
    ("current_stream", c_void_p),
]
# Prototypes of our own: ctypes.pythonapi's attributes belong to the whole process.
_capsule_name = PYFUNCTYPE(c_char_p, py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = PYFUNCTYPE(c_void_p, py_object, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Borrowed:
    """A tensor for one call: `tensor` is its DLTensor, `stream` the one it is worked on (an
    address; None on CPU)."""

    __slots__ = ("tensor", "stream", "_owner")

    def __init__(self, thing, role=INPUT):
        functions = functions_of(type(thing))
        self._owner, self.stream = thing, None
        if functions:
            self.tensor = Tensor()
            functions[0](thing, ctypes.byref(self.tensor))  # raises what the table's owner raises
            if self.tensor.device_type != CPU:
                self.stream = stream_of(functions[1], self.tensor)
        elif hasattr(thing, "__dlpack__"):
            self._owner = capsule_of(thing)  # its destructor gives the tensor back
            if role == OUTPUT:
                refuse_fixed(thing, self._owner)
            self.tensor = view_of(self._owner, role)
        else:
            raise errors.InvalidArgument(
                "found %s, expected a tensor that has DLPack" % type(thing).__name__,
                INVALID_ARGUMENT,
            )


@functools.cache
def functions_of(kind):
    """(tensor_from_object, current_stream) of a type's exchange table, None where it has none."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    table = ctypes.cast(_capsule_pointer(capsule, b"dlpack_exchange_api"), POINTER(Table))
    while table and table.contents.major != MAJOR:
        table = table.contents.previous
    if not table or not table.contents.tensor_from_object:
        return None
    return FROM_OBJECT(table.contents.tensor_from_object), STREAM(table.contents.current_stream)


def stream_of(function, tensor):
    out = c_void_p()
    function(tensor.device_type, tensor.device_id, ctypes.byref(out))
    return out.value


def capsule_of(thing):
    try:
        return thing.__dlpack__(max_version=(MAJOR, 0))
    except TypeError:  # from before versions
        return thing.__dlpack__()


def refuse_fixed(thing, capsule):
    """A capsule from before versions cannot say that its memory may only be read, as JAX's; the
    buffer of the same memory can."""
    if _capsule_name(capsule) != b"dltensor":
        return
    try:
        fixed = memoryview(thing).readonly
    except (TypeError, ValueError, BufferError):
        fixed = True
    if fixed:
        raise errors.InvalidArgument(
            "output: nothing says that this %s may be written" % type(thing).__name__,
            INVALID_ARGUMENT,
        )


def view_of(capsule, role):
    name = _capsule_name(capsule)
    if name not in (b"dltensor", b"dltensor_versioned"):  # another's, or taken already
        raise errors.InvalidArgument("a capsule that holds no tensor", INVALID_ARGUMENT)
    versioned = name == b"dltensor_versioned"
    managed = _capsule_pointer(capsule, name)
    if versioned and c_uint32.from_address(managed).value != MAJOR:
        raise errors.InvalidArgument("a tensor of another DLPack version", INVALID_ARGUMENT)
    native, out = library.native(), c_void_p()
    view = native.lam_tensor_view if versioned else native.lam_tensor_view_legacy
    library.check(view(managed, role, ctypes.byref(out)))
    return Tensor.from_address(out.value)
