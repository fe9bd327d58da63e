"""XLA's FFI call frames for the platform CUDA, made here, as bindings/xla/ffi.h has them.

Invariant: a call is made on the stream that is given, with what lies in a device's memory.
Leaves streams and memory to card.py.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_int32, c_int64, c_size_t, c_void_p

from lamella.jax import native

BUFFER, SCALAR, EXECUTE, S64, F32 = 1, 3, 3, 5, 11
HEAD = [("struct_size", c_size_t), ("extension", c_void_p)]


class Error(Structure):
    _fields_ = [*HEAD, ("message", ctypes.c_char_p), ("code", c_int32)]


class Stream(Structure):
    _fields_ = [*HEAD, ("context", c_void_p), ("stream", c_void_p)]


MAKE_ERROR, GET_STREAM = CFUNCTYPE(c_void_p, POINTER(Error)), CFUNCTYPE(c_void_p, POINTER(Stream))


class Api(Structure):
    _fields_ = [*HEAD, ("version", c_int64 * 3), ("internal", c_void_p), ("error", MAKE_ERROR)]
    _fields_ += [("unused", c_void_p * 3), ("stream", GET_STREAM)]


class Buffer(Structure):
    _fields_ = [*HEAD, ("dtype", c_int32), ("data", c_void_p), ("rank", c_int64)]
    _fields_ += [("dims", POINTER(c_int64))]


class Values(Structure):
    _fields_ = [*HEAD, ("size", c_int64), ("types", POINTER(c_int32)), ("values", POINTER(c_void_p))]


class Span(Structure):
    _fields_ = [("ptr", ctypes.c_char_p), ("len", c_size_t)]


class Scalar(Structure):
    _fields_ = [("dtype", c_int32), ("value", POINTER(c_int64))]


class Attrs(Structure):
    _fields_ = [*HEAD, ("size", c_int64), ("types", POINTER(c_int32)), ("names", POINTER(c_void_p))]
    _fields_ += [("values", POINTER(c_void_p))]


class Frame(Structure):
    _fields_ = [*HEAD, ("api", POINTER(Api)), ("context", c_void_p), ("stage", c_int32)]
    _fields_ += [("args", Values), ("rets", Values), ("attrs", Attrs)]


def pointers(items):
    return (c_void_p * len(items))(*map(ctypes.addressof, items))


def types(kind, items):
    return (c_int32 * len(items))(*[kind] * len(items))


def buffers(arrays, kept):
    """arrays: (address, shape), of f32."""
    made = []
    for address, shape in arrays:
        dims = (c_int64 * len(shape))(*shape)
        kept.append(dims)
        made.append(Buffer(ctypes.sizeof(Buffer), None, F32, address, len(shape), dims))
    kept.append(made)
    return Values(ctypes.sizeof(Values), None, len(made), types(BUFFER, made), pointers(made))


def call(name, inputs, outputs, stream, **ints):
    """What the handler of a row on CUDA says: None, or an error's words."""
    kept, said = [], []

    def error(args):
        said.append(args[0].message.decode())
        return 1

    def get_stream(args):
        args[0].stream = stream

    api = Api(ctypes.sizeof(Api), error=MAKE_ERROR(error), stream=GET_STREAM(get_stream))
    spans = [Span(key.encode(), len(key)) for key in sorted(ints)]
    numbers = [Scalar(S64, ctypes.pointer(c_int64(ints[key]))) for key in sorted(ints)]
    attrs = Attrs(ctypes.sizeof(Attrs), None, len(ints), types(SCALAR, spans), pointers(spans))
    attrs.values = pointers(numbers)
    frame = Frame(ctypes.sizeof(Frame), api=ctypes.pointer(api), stage=EXECUTE, attrs=attrs)
    frame.args, frame.rets = buffers(inputs, kept), buffers(outputs, kept)
    handler = getattr(native.adapter(), "lam_xla_cuda_" + name)
    handler.restype = c_void_p
    failed = handler(ctypes.byref(frame))
    assert bool(failed) == bool(said)
    return said[0] if said else None
