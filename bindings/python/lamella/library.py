"""The native library, found and called through ctypes.

It is looked for in the package's own `lib` folder, then, in a checkout, where Bazel builds it.
Invariant: one liblamella.so.0 per process, whichever host loads it first.
Leaves what the functions mean to abi/lamella.h.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from lamella import errors

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parents[2]
NAME = "liblamella.so.0"
MAX_DIMS = 8
# Where each file lies in a checkout; an installed package has all of them in `lib`.
BUILT = {
    NAME: "bazel-bin/abi",
    "liblamella_cuda.so.0": "bazel-bin/abi",
    "lamella_torch.so": "bazel-bin/bindings/torch",
    "liblamella_xla.so": "bazel-bin/bindings/xla",
    "lamella_python.so": "bazel-bin/bindings/python/native",
}


def path(name: str) -> str:
    """The whole path of a native file; lamella.Error where there is none."""
    places = [PACKAGE / "lib" / name, CHECKOUT / BUILT.get(name, "bazel-bin") / name]
    for place in places:
        if place.exists():
            return str(place)
    raise errors.Error("%s is neither in %s nor in %s: run ./lamella build" % (name, *places))


class ContextDesc(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("user", ctypes.c_void_p),
        ("alloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
        ("should_stop", ctypes.c_void_p),
        ("log", ctypes.c_void_p),
        ("tf32", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    ]


class Sized(ctypes.Structure):
    """A struct that begins with its size, set when it is made."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class Dtype(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):  # DLTensor
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", Dtype),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Shape(ctypes.Structure):
    _fields_ = [("ndim", ctypes.c_int32), ("dtype", Dtype), ("dims", ctypes.c_int64 * MAX_DIMS)]


class GroupId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 128)]


class GroupDesc(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("deadline_ms", ctypes.c_uint32),
        ("first_deadline_ms", ctypes.c_uint32),
        ("gpu", ctypes.c_uint32),
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
        ("device_way", ctypes.c_char_p),
        ("device_why", ctypes.c_char_p),
    ]


class ShardPiece(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_int64), ("end", ctypes.c_int64)]


class ShardInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("n_pieces", ctypes.c_uint32),
        ("pieces", ShardPiece * 2),
    ]


_STATUS, _HANDLE, _OUT = ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES = {
    "lam_last_error": (ctypes.c_char_p, []),
    "lam_version": (ctypes.c_uint32, []),
    "lam_op_row": (ctypes.c_char_p, [ctypes.c_uint32]),
    "lam_op_find": (_STATUS, [ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)]),
    "lam_shard": (
        _STATUS,
        [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_int32] * 3, ctypes.POINTER(ShardInfo)],
    ),
    "lam_context_create": (_STATUS, [ctypes.POINTER(ContextDesc), _OUT]),
    "lam_run": (_STATUS, [_HANDLE, _HANDLE]),
    "lam_infer": (_STATUS, [_HANDLE, _HANDLE, _HANDLE]),
    "lam_tensor_view": (_STATUS, [_HANDLE, ctypes.c_uint32, _OUT]),
    "lam_tensor_view_legacy": (_STATUS, [_HANDLE, ctypes.c_uint32, _OUT]),
    "lam_packed_size": (
        _STATUS,
        [_HANDLE, Dtype, *[ctypes.c_int64] * 2, ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)],
    ),
    "lam_group_id_create": (_STATUS, [ctypes.POINTER(GroupId)]),
    "lam_group_create": (_STATUS, [_HANDLE, ctypes.POINTER(GroupDesc), _OUT]),
    "lam_group_create_from_env": (_STATUS, [_HANDLE, ctypes.POINTER(GroupDesc), _OUT]),
    "lam_group_adopt_nccl": (_STATUS, [_HANDLE, ctypes.POINTER(GroupDesc), _HANDLE, _OUT]),
    "lam_group_split": (_STATUS, [_HANDLE, ctypes.c_int32, ctypes.c_int32, _OUT]),
    "lam_group_get_info": (_STATUS, [_HANDLE, ctypes.POINTER(GroupInfo)]),
    "lam_group_handle": (ctypes.c_int64, [_HANDLE]),
    "lam_group_use": (_STATUS, [ctypes.c_int64, ctypes.c_int32]),
    "lam_group_warmup": (_STATUS, [_HANDLE]),
    "lam_group_destroy": (None, [_HANDLE]),
}


@functools.cache
def native() -> ctypes.CDLL:
    """The library as ctypes sees it, with the signatures that Python uses."""
    library = ctypes.CDLL(path(NAME))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def check(status: int) -> None:
    """Raises the exception of a lam_status that is not 0."""
    if status != 0:
        raise errors.of_status(status, native().lam_last_error().decode(errors="replace"))


def version() -> tuple[int, int, int]:
    """The library's version, as (major, minor, patch)."""
    v = native().lam_version()
    return v >> 16, v >> 8 & 0xFF, v & 0xFF


def rows() -> list[str]:
    """The operator table's rows as text, by ascending id; see abi/lamella_ops.def."""
    texts = (native().lam_op_row(i) for i in range(1 << 8))
    return [text.decode() for text in texts if text]


def shard(
    total: int, rank: int, size: int, unit: int = 1, gated: bool = False
) -> list[tuple[int, int]]:
    """Which part of `total` elements a rank owns: a list of (begin, end), half open.

    Whole units are shared out, larger shares first; a gated weight (gate rows, then up rows) has a
    piece in each half.
    """
    info = ShardInfo(struct_size=ctypes.sizeof(ShardInfo))
    check(native().lam_shard(total, unit, int(gated), rank, size, ctypes.byref(info)))
    return [(piece.begin, piece.end) for piece in info.pieces[: info.n_pieces]]


def packed_cols(dtype, n, k, side=0):
    """Columns of the uint8 tensor that holds a packed weight [n, k]; dtype: code | bits << 8."""
    cols = ctypes.c_int64()
    described = Dtype(dtype & 0xFF, dtype >> 8, 1)
    check(native().lam_packed_size(None, described, n, k, side, ctypes.byref(cols)))
    return cols.value
