"""Pipelines whose stages are Python objects: one schedule, run over a group's ranks.

A stage is any object with methods forward(io) and backward(io), or with the backward split in
backward_input(io) and backward_weight(io); see Stage. Tensors come and go as Views, which NumPy,
PyTorch (lamella.torch) and JAX (lamella.jax) read and write in place.
Invariant: an exception in a stage's method ends the step on every rank, and is raised again, the
same object, from run() on its own.
Leaves schedules to schedule.py, what a step does to the library.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lamella import errors, library, pipeline_abi, schedule
from lamella.group import Group
from lamella.pipeline_abi import native
from lamella.schedule import Schedule

if TYPE_CHECKING:
    import numpy

__all__ = ["Pipeline", "Schedule", "Stage", "Tied", "View"]

# name -> code | bits << 8, as DLPack counts them
DTYPES = {
    "f32": 2 | 32 << 8,
    "f64": 2 | 64 << 8,
    "f16": 2 | 16 << 8,
    "bf16": 4 | 16 << 8,
    "i32": 0 | 32 << 8,
    "i64": 0 | 64 << 8,
    "u8": 1 | 8 << 8,
}
NUMPY = {0: "i", 1: "u", 2: "f"}  # by code; NumPy has none of the others
CODECS = ("none", "bf16", "f8e4m3", "f8e5m2", "int8")
INTERNAL, INTERRUPTED = 13, 1 | 6 << 8
HOST, CUDA = 1, 2  # DLPack's types of devices
EXPLAINED_BYTES = 1 << 16
METHODS = ("forward", "backward", "backward_input", "backward_weight", "reduce_grad")

# One rank's part of a step: see lam_idle.
Idle = namedtuple(
    "Idle", "work warm_up drain waiting imbalance other predicted worst worst_edge worst_kind"
)
Explained = namedtuple("Explained", "step predicted_step level_step metering ranks text")


class Tied(NamedTuple):
    """A weight that several stages share. stages: ascending; data: address of this rank's gradient,
    a compact tensor of that shape and dtype, or 0 where the rank holds none of the stages. Its
    owner keeps it alive, and starts each step from zeros; after a step it has the sum over all
    ranks."""

    stages: Sequence[int]
    shape: Sequence[int]
    dtype: str | int
    data: int


class Stage:
    """What a pipeline calls for a stage; derive from it, or have the same attributes. A method
    that is None is "cannot": without backward_input and backward_weight, where a schedule splits
    the backward, backward does all of it in I's place.

    forward(io): io.inputs are activations (none at the first stage), io.outputs are to be written
    (none at the last stage, which adds to the loss). backward(io): io.inputs are gradients of the
    outputs, io.outputs gradients of the inputs. What a stage saves it keys by io.micro.
    reduce_grad(io), without tensors, follows a stage's last backward of a step.
    """

    forward = backward = backward_input = backward_weight = reduce_grad = None
    keeps_input = False  # views in forward's io.inputs stay valid until the last backward action


class View:
    """A tensor in the pipeline's own memory: compact, row-major.

    data: its address; device: (DLPack's type, number), (1, 0) the host's memory; shape: a tuple,
    which a stage may set lower on its outputs; dtype: DLPack's code | bits << 8. Valid while the
    method runs.
    """

    __slots__ = ("_tensor",)

    def __init__(self, tensor: library.Tensor) -> None:
        self._tensor = tensor

    @property
    def data(self) -> int:
        return (self._tensor.data or 0) + self._tensor.byte_offset

    @property
    def device(self) -> tuple[int, int]:
        return self._tensor.device_type, self._tensor.device_id

    @property
    def dtype(self) -> int:
        return self._tensor.dtype.code | self._tensor.dtype.bits << 8

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._tensor.shape[: self._tensor.ndim])

    @shape.setter
    def shape(self, dims):
        if len(dims) != self._tensor.ndim:
            raise errors.InvalidArgument(
                "shape: %d dimensions, expected %d" % (len(dims), self._tensor.ndim), 3
            )
        for i, size in enumerate(dims):
            self._tensor.shape[i] = size

    @property
    def nbytes(self) -> int:
        n = self._tensor.dtype.bits // 8
        for size in self.shape:
            n *= size
        return n

    def memory(self) -> ctypes.Array:
        """Its bytes, as a writable buffer. Raises FailedPrecondition for a device's memory."""
        if self.device[0] != HOST:
            raise errors.FailedPrecondition("a view of device %d:%d" % self.device, 9)
        return (ctypes.c_uint8 * self.nbytes).from_address(self.data)

    def numpy(self) -> numpy.ndarray:
        """The same memory as a NumPy array; TypeError for a dtype that NumPy lacks."""
        import numpy

        code, bits = self.dtype & 0xFF, self.dtype >> 8
        if code not in NUMPY:
            raise TypeError("NumPy has no dtype of code %d, %d bits" % (code, bits))
        array = numpy.frombuffer(self.memory(), dtype="%s%d" % (NUMPY[code], bits // 8))
        return array.reshape(self.shape)


class IO:
    """What a stage's method is handed: stage, micro (-1: none), step, inputs, outputs."""

    __slots__ = ("stage", "micro", "step", "inputs", "outputs", "_loss")

    def __init__(self, io):
        self.stage, self.micro, self.step = io.stage, io.micro, io.step
        self.inputs = [View(io.inputs[i]) for i in range(io.n_in)]
        self.outputs = [View(io.outputs[i]) for i in range(io.n_out)]
        self._loss = io.loss

    def add_loss(self, x: float) -> None:
        """Adds to the step's loss; the last stage's to do."""
        if not self._loss:
            raise errors.FailedPrecondition("stage %d is not the last one" % self.stage, 9)
        self._loss[0] += x


class Report:
    """The last step on this rank, times in nanoseconds: step_time, busy, cpu, warm_up, drain,
    waiting, overhead, worst_edge, worst_kind, slot_bytes, events. paths: what carries this rank's
    messages, {(edge, "F" activations or "I" gradients): "shm", ...}."""

    def __init__(self, found, events, paths):
        self.__dict__.update(
            (name, getattr(found, name))
            for name, _ in found._fields_
            if name not in ("struct_size", "events", "n_events")
        )
        self.events, self.paths = events, paths

    def draw(self, format: str = "grid") -> str:
        """What this rank did, as "grid", "svg" or "perfetto"."""
        return schedule.draw(self.events, format, self.paths)


class Pipeline:
    """Stages of this rank in a pipeline over `group` (None: all of them are here). Collective.

    stages: {stage number: Stage}, those of this rank. edges: for each edge of the whole pipeline
    [(shape, dtype), ...], equal on all ranks; shapes are capacities; dtype a name of DTYPES or
    code | bits << 8. tensor: ranks that hold the same activations. tied: [Tied, ...], in the same
    order on all ranks. any_order: weight gradients need not be summed in micro-batch order.
    bytes_per_second: in bytes, between two ranks; 0 = memory's. codec: how activations travel
    between ranks, of CODECS; gradient_codec: gradients. device: where edges' tensors and shared
    weights lie, (DLPack's type, number), (0, 0) the host's memory; a step's work is queued on that
    one's `stream`, and run() returns before it is done. Raises lamella.Error: InvalidArgument for
    what does not fit the schedule, Mismatch where ranks were given different things.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: Mapping[int, Stage],
        edges: Sequence[Sequence[tuple[Sequence[int], str | int]]],
        group: Group | None = None,
        tensor: Group | None = None,
        tied: Sequence[Tied] = (),
        forward_only: bool = False,
        any_order: bool = False,
        bytes_per_second: float = 0,
        codec: str = "none",
        gradient_codec: str = "none",
        device: tuple[int, int] = (0, 0),
        stream: int = 0,
    ) -> None:
        self.schedule, self.group, self.stages = schedule, group, dict(stages)
        self.pointer = None
        self._kept = []  # what the library points to
        self._raised, self._running = None, False
        self._check_stages(group.rank if group else 0)
        edges = [_edge(i, e, codec, gradient_codec) for i, e in enumerate(edges)]
        own = [self._stage(number, self.stages[number]) for number in sorted(self.stages)]
        tied = [_tied(t) for t in tied]
        desc = pipeline_abi.PipelineDesc(
            flags=forward_only * pipeline_abi.PIPELINE_FORWARD_ONLY
            | any_order * pipeline_abi.PIPELINE_ANY_ORDER,
            group=group.pointer if group else None,
            schedule=schedule.pointer,
            stages=_array(pipeline_abi.Stage, own),
            edges=_array(pipeline_abi.Edge, edges),
            n_stages=len(own),
            n_edges=len(edges),
            tensor=tensor.pointer if tensor else None,
            edge_bytes_per_second=bytes_per_second,
            n_tied=len(tied),
            tied=_array(pipeline_abi.Tied, tied),
            device_type=device[0],
            device_id=device[1],
            stream=stream,
        )
        out = ctypes.c_void_p()
        library.check(native().lam_pipeline_create(None, ctypes.byref(desc), ctypes.byref(out)))
        self.pointer = out
        for used in (group, tensor):
            if used:
                used.pipelines.add(self)

    def _check_stages(self, rank):
        """The library counts them; which they are only Python knows."""
        n_ranks = self.schedule.n_ranks
        expected = self.schedule.stages_of(rank) if rank < n_ranks else []
        if len(self.stages) == len(expected) and sorted(self.stages) != expected:
            raise errors.InvalidArgument(
                "stages: rank %d was given %s, the schedule puts %s on it"
                % (rank, sorted(self.stages), expected),
                3,
            )

    def _stage(self, number, stage):
        keeps = getattr(stage, "keeps_input", False)
        found = pipeline_abi.Stage(flags=pipeline_abi.STAGE_KEEPS_INPUT if keeps else 0)
        for name in METHODS:
            method = getattr(stage, name, None)
            if method is not None:
                setattr(found, name, self._callback(method, "stage %d, %s" % (number, name)))
        return found

    def _callback(self, method, where):
        """A C function that calls a stage's method."""
        guard = self._guard(method, where)
        next(guard)
        function = pipeline_abi.STAGE_FN(guard.send)
        self._kept.append(function)
        return function

    def _guard(self, method, where):
        """Gets a call, gives a status, and again. A generator, as ctypes drops what is raised
        before a function's first `try`, and there a signal would be that came while the library
        was at work: Ctrl-C. Here there is no such place."""
        status = 0
        while True:
            io = None
            try:
                while True:
                    call = yield status
                    io, status = IO(call.io[0]), 0
                    method(io)
            except GeneratorExit:
                return
            except BaseException as error:
                status = self._fail(error, where, io)

    def _fail(self, error, where, io):
        """Keeps what was raised for run(), and tells the other ranks."""
        if io is not None and io.micro >= 0:
            where += ", micro-batch %d" % io.micro
        if hasattr(error, "add_note"):
            error.add_note("in " + where)
        self._raised, status = error, _status(error)
        if self.group:
            kind, text = type(error).__name__, _text(error)
            said = "rank %d, %s: %s: %s" % (self.group.rank, where, kind, text)
            native().lam_group_poison(self.group.pointer, status, said.encode(errors="replace"))
        return status

    def run(self, step: int = 0) -> float:
        """One step of this rank's list. Gives the loss on the last stage's rank, else 0.0. Raises
        what a stage of this rank did, and what a Group does for peers."""
        loss = ctypes.c_double()
        if self._running:
            raise errors.FailedPrecondition("the pipeline is running", 9)
        self._running = True
        try:
            status = native().lam_pipeline_run(self.pointer, step, ctypes.byref(loss))
        finally:
            self._running = False
        if self._raised is not None:
            raised, self._raised = self._raised, None
            try:
                raise raised
            finally:
                del raised  # its traceback has this frame
        library.check(status)
        return loss.value

    def report(self) -> Report:
        """Where the last step's time went on this rank: a Report."""
        found = pipeline_abi.PipelineReport()
        library.check(native().lam_pipeline_get_report(self.pointer, ctypes.byref(found)))
        found.events = events = (pipeline_abi.Event * found.n_events)()
        library.check(native().lam_pipeline_get_report(self.pointer, ctypes.byref(found)))
        return Report(found, schedule.events_of(events, found.n_events), self._paths())

    def _paths(self):
        """Of edges that lead to or from this rank; not of one whose first message is to come."""
        found = {}
        for edge, kind in itertools.product(range(self.schedule.n_stages - 1), ("F", "I")):
            info = pipeline_abi.EdgeInfo()
            number = schedule.KINDS.index(kind)
            status = native().lam_pipeline_get_edge(self.pointer, edge, number, ctypes.byref(info))
            if status == 0 and info.peer >= 0 and info.path:
                found[edge, kind] = info.path.decode()
        return found

    def explain(self) -> str:
        """Where the last step's time went on all ranks, as text, and what to do about it.
        Collective: every rank calls it after the same step."""
        return self.explained().text

    def explained(self) -> Explained:
        """The same in numbers, nanoseconds: Explained, whose `ranks` are of Idle. Collective."""
        text, ranks = ctypes.create_string_buffer(EXPLAINED_BYTES), self.schedule.n_ranks
        idle = (pipeline_abi.Idle * ranks)()
        found = pipeline_abi.Explained(
            ranks=idle,
            n_ranks=ranks,
            text=ctypes.cast(text, ctypes.c_char_p),
            text_bytes=EXPLAINED_BYTES,
        )
        library.check(native().lam_pipeline_explain(self.pointer, ctypes.byref(found)))
        idle = [Idle(*[getattr(rank, name) for name in Idle._fields]) for rank in idle]
        times = found.step, found.predicted_step, found.level_step, found.metering
        return Explained(*times, idle, text.value.decode())

    def close(self) -> None:
        """Frees it; a second time does nothing. Never from within a stage's method."""
        if self._running:
            raise errors.FailedPrecondition("the pipeline is running", 9)
        if self.pointer:
            native().lam_pipeline_destroy(self.pointer)
            self.pointer = None
            self._kept.clear()

    def __del__(self):
        if getattr(self, "pointer", None):
            self.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _status(error):
    """The lam_status of an exception; others than ours may have a `status` that means another."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return isinstance(error, errors.Error) and error.status or INTERNAL


def _text(error):
    """What an exception says; one that cannot is a failure all the same."""
    try:
        return str(error)
    except Exception:
        return "(its text cannot be had)"


def dtype_code(dtype):
    """A name of DTYPES, or a code already."""
    return DTYPES[dtype] if isinstance(dtype, str) else int(dtype)


def _shape(shape, dtype):
    code = dtype_code(dtype)
    if len(shape) > pipeline_abi.MAX_DIMS:
        raise ValueError("%d dimensions, expected at most %d" % (len(shape), pipeline_abi.MAX_DIMS))
    return pipeline_abi.Shape(
        ndim=len(shape),
        dtype=pipeline_abi.Dtype(code & 0xFF, code >> 8, 1),
        dims=(ctypes.c_int64 * pipeline_abi.MAX_DIMS)(*shape),
    )


def _edge(number, tensors, codec, gradient_codec):
    shapes = []
    for i, tensor in enumerate(tensors):
        try:
            shapes.append(_shape(*tensor))
        except (KeyError, TypeError, ValueError) as error:
            raise errors.InvalidArgument(
                "edges[%d][%d] is %r, expected (shape, dtype), dtype a code or one of %s: %s"
                % (number, i, tensor, ", ".join(DTYPES), error),
                3,
            ) from None
    return pipeline_abi.Edge(
        n_tensors=len(shapes),
        tensors=_array(pipeline_abi.Shape, shapes),
        codec=_codec(codec),
        gradient_codec=_codec(gradient_codec),
    )


def _codec(name):
    if name not in CODECS:
        raise errors.InvalidArgument(
            "codec is %r, expected one of %s" % (name, ", ".join(CODECS)), 3
        )
    return CODECS.index(name)


def _tied(tied):
    return pipeline_abi.Tied(
        n_stages=len(tied.stages),
        stages=(ctypes.c_int32 * len(tied.stages))(*tied.stages),
        shape=_shape(tied.shape, tied.dtype),
        gradient=tied.data or None,
    )


def _array(kind, items):
    return (kind * len(items))(*items) if items else None
