"""abi/lamella_pipeline.h as ctypes sees it: its structs and its functions' signatures.

Invariant: fields stand as in the header, under its names (`in` and `out` are `inputs` and
`outputs`, as Python has a word `in`); tests compare sizes and offsets with the ABI's golden text.
Leaves what they mean to the header, and to schedule.py and pipeline.py.
"""

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_uint16, c_uint32, c_uint64
from ctypes import c_void_p

from lamella import library
from lamella.library import MAX_DIMS, Dtype, Shape, Sized, Tensor


class StageIO(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("stage", c_int32),
        ("micro", c_int32),
        ("n_in", c_int32),
        ("n_out", c_int32),
        ("flags", c_uint32),
        ("step", c_int64),
        ("inputs", POINTER(Tensor)),
        ("outputs", POINTER(Tensor)),
        ("stream", c_void_p),
        ("loss", POINTER(c_double)),
    ]


class StageCall(ctypes.Structure):
    """Both arguments of a lam_stage_fn: two pointers in a struct travel as two pointers do, in the
    first two registers, on x86-64, AArch64 and RISC-V alike."""

    _fields_ = [("user", c_void_p), ("io", POINTER(StageIO))]


STAGE_FN = ctypes.CFUNCTYPE(c_int32, StageCall)
STAGE_KEEPS_INPUT = 1


class Stage(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("user", c_void_p),
        ("forward", STAGE_FN),
        ("backward", STAGE_FN),
        ("backward_input", STAGE_FN),
        ("backward_weight", STAGE_FN),
        ("forward_backward", c_void_p),
        ("reduce_grad", STAGE_FN),
        ("backward_user", c_void_p),
        ("backward_input_user", c_void_p),
        ("backward_weight_user", c_void_p),
        ("first_layer", c_uint32),
        ("n_layers", c_uint32),
    ]


class Edge(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_tensors", c_uint32),
        ("tensors", POINTER(Shape)),
        ("codec", c_uint32),
        ("gradient_codec", c_uint32),
    ]


class Tied(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_stages", c_uint32),
        ("stages", POINTER(c_int32)),
        ("shape", Shape),
        ("gradient", c_void_p),
    ]


PIPELINE_FORWARD_ONLY, PIPELINE_ANY_ORDER = 1, 2


class PipelineDesc(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("group", c_void_p),
        ("schedule", c_void_p),
        ("stages", POINTER(Stage)),
        ("edges", POINTER(Edge)),
        ("n_stages", c_uint32),
        ("n_edges", c_uint32),
        ("tensor", c_void_p),
        ("edge_bytes_per_second", c_double),
        ("split", c_uint32),
        ("n_tied", c_uint32),
        ("tied", POINTER(Tied)),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("stream", c_void_p),
    ]


class Event(ctypes.Structure):
    _fields_ = [
        ("rank", c_int32),
        ("stage", c_int32),
        ("micro", c_int32),
        ("kind", c_uint16),
        ("part", c_uint16),
        ("start", c_int64),
        ("end", c_int64),
    ]


class Carrier(ctypes.Structure):
    _fields_ = [("edge", c_int32), ("kind", c_int32), ("path", c_char_p)]


class EdgeInfo(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("peer", c_int32),
        *[(name, c_uint32) for name in ("codec", "parts", "depth", "reserved")],
        ("slot_bytes", c_uint64),
        ("wire_bytes", c_uint64),
        ("whole_seconds", c_double),
        ("split_seconds", c_double),
        ("why", c_char_p),
        ("path", c_char_p),
    ]


class PipelineReport(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_actions", c_uint32),
        *[(name, c_int64) for name in ("step_time", "busy", "cpu")],
        *[(name, c_int64) for name in ("warm_up", "drain", "waiting", "overhead")],
        ("worst_edge", c_int32),
        ("worst_kind", c_int32),
        ("slot_bytes", c_uint64),
        ("events", POINTER(Event)),
        ("n_events", c_uint64),
        ("capturable", c_uint32),
        ("device_times", c_uint32),
    ]


class Idle(ctypes.Structure):
    _fields_ = [
        *[(name, c_double) for name in ("work", "warm_up", "drain", "waiting", "imbalance")],
        *[(name, c_double) for name in ("other", "predicted", "worst")],
        ("worst_edge", c_int32),
        ("worst_kind", c_int32),
    ]


class Explained(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        *[(name, c_double) for name in ("step", "predicted_step", "level_step", "metering")],
        ("ranks", POINTER(Idle)),
        ("text", c_char_p),
        ("n_ranks", c_uint64),
        ("text_bytes", c_uint64),
    ]


class ScheduleInfo(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        *[(name, c_int32) for name in ("n_ranks", "n_stages", "n_micro")],
        ("peak_in_flight", c_int32),
        ("ring_depth", c_int32),
        ("n_actions", c_uint64),
        ("n_transfers", c_uint64),
        *[(name, c_double) for name in ("makespan", "bubble", "rank_bubble")],
        ("peaks", POINTER(c_int32)),
        ("ring_depths", POINTER(c_int32)),
        ("n_peaks", c_uint64),
        ("n_ring_depths", c_uint64),
    ]


class Costs(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_stages", c_uint32),
        *[(name, POINTER(c_double)) for name in ("forward", "backward_input", "backward_weight")],
        *[(name, POINTER(c_double)) for name in ("transfer", "forward_backward", "reduce_grad")],
    ]


class Simulated(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        *[(name, c_double) for name in ("makespan", "bubble", "rank_bubble")],
        ("events", POINTER(Event)),
        ("n_events", c_uint64),
        ("ranks", c_void_p),
        ("waits", POINTER(c_double)),
        ("n_ranks", c_uint64),
        ("n_waits", c_uint64),
    ]


class ChoiceDesc(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        *[(name, c_int32) for name in ("p", "v", "m")],
        ("reserved", c_uint32),
        *[(name, c_uint64) for name in ("static_bytes", "activation_bytes", "cap_bytes")],
    ]


class Choice(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("v", c_int32),
        ("name", c_char_p),
        ("bytes", c_uint64),
        ("reason", ctypes.c_char * 240),
    ]


_STATUS, _OUT = c_int32, POINTER(c_void_p)
_TEXT = [c_char_p, c_uint64, POINTER(c_uint64)]  # buf, room, out_bytes
_SIGNATURES = {
    "lam_schedule_build": (_STATUS, [c_char_p, c_int32, c_int32, c_int32, _OUT]),
    "lam_schedule_name": (c_char_p, [c_int32]),
    "lam_schedule_about": (c_char_p, [c_int32]),
    "lam_schedule_parse": (_STATUS, [c_char_p, c_uint64, _OUT]),
    "lam_schedule_write": (_STATUS, [c_void_p, c_char_p, *_TEXT]),
    "lam_schedule_check": (_STATUS, [c_void_p, POINTER(ScheduleInfo)]),
    "lam_schedule_simulate": (_STATUS, [c_void_p, POINTER(Costs), POINTER(Simulated)]),
    "lam_schedule_choose": (_STATUS, [POINTER(ChoiceDesc), POINTER(Choice)]),
    "lam_schedule_destroy": (None, [c_void_p]),
    "lam_events_draw_messages": (
        _STATUS,
        [POINTER(Event), c_uint64, POINTER(Carrier), c_uint64, c_char_p, *_TEXT],
    ),
    "lam_pipeline_get_edge": (_STATUS, [c_void_p, c_int32, c_int32, POINTER(EdgeInfo)]),
    "lam_pipeline_create": (_STATUS, [c_void_p, POINTER(PipelineDesc), _OUT]),
    "lam_pipeline_run": (_STATUS, [c_void_p, c_int64, POINTER(c_double)]),
    "lam_pipeline_get_report": (_STATUS, [c_void_p, POINTER(PipelineReport)]),
    "lam_pipeline_explain": (_STATUS, [c_void_p, POINTER(Explained)]),
    "lam_pipeline_destroy": (None, [c_void_p]),
    "lam_group_poison": (None, [c_void_p, c_int32, c_char_p]),
}


@functools.cache
def native():
    """The library, with the signatures of this header's functions too."""
    found = library.native()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def text_of(function, *arguments):
    """What a function that writes text (buf, room, out_bytes last) writes."""
    n = c_uint64()
    library.check(function(*arguments, None, 0, ctypes.byref(n)))
    buffer = ctypes.create_string_buffer(n.value + 1)
    library.check(function(*arguments, buffer, len(buffer), ctypes.byref(n)))
    return buffer.raw[: n.value].decode()
