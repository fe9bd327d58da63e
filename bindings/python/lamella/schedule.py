"""Schedules: which rank does what, in which order; built, read, checked, timed and drawn.

Invariant: a schedule is data, one list of actions per rank ("0F0 2I1 0W3 1B2"); nothing here runs
one or needs a group. Costs are nanoseconds, or any other unit: makespans are in the same.
Leaves running one to pipeline.py, what names mean to abi/lamella_pipeline.h.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import Union

from lamella import errors, library, pipeline_abi
from lamella.pipeline_abi import native, text_of

Costs = Union[float, Iterable[float]]  # one for all stages, or one each
KINDS = ("F", "I", "W", "B", "send", "recv", "wait", "reduce_grad")

Event = namedtuple("Event", "rank stage micro kind part start end")  # kind: of KINDS; times: ns
Simulated = namedtuple("Simulated", "makespan bubble rank_bubble events")
Choice = namedtuple("Choice", "name stages_per_rank bytes reason")
Info = namedtuple(
    "Info",
    "n_ranks n_stages n_micro peak_in_flight ring_depth n_actions n_transfers makespan bubble "
    "rank_bubble",
)


def names() -> dict[str, str]:
    """name -> one line about it, of every schedule that can be built."""
    found, i = {}, 0
    while name := native().lam_schedule_name(i):
        found[name.decode()] = native().lam_schedule_about(i).decode()
        i += 1
    return found


class Schedule:
    """A table of actions. Made by `build`, `choose`, `parse` or `load`; freed with the object."""

    def __init__(self, pointer: ctypes.c_void_p) -> None:
        self.pointer = pointer
        info = self._info()
        self.n_ranks, self.n_stages, self.n_micro = info.n_ranks, info.n_stages, info.n_micro
        self._stages = _stages_by_rank(self.text(), self.n_ranks)

    def __reduce__(self):
        return Schedule.parse, (self.text(),)

    def __del__(self):
        if getattr(self, "pointer", None):
            native().lam_schedule_destroy(self.pointer)
            self.pointer = None

    @classmethod
    def build(cls, name: str, ranks: int, micro_batches: int, stages_per_rank: int = 1) -> Schedule:
        """One of `names()`, or "auto". Stage c * ranks + r is rank r's; in a V ("zbv", "v-half",
        "v-min", "dualpipev": 2 stages per rank) stages r and 2 * ranks - 1 - r are. Raises
        NotFound for other names, InvalidArgument for counts that it does not have."""
        return cls._make(
            "lam_schedule_build", name.encode(), ranks, stages_per_rank, micro_batches
        )

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """From the text form, or from the CSV of torch.distributed.pipelining. Raises
        InvalidArgument with the place where it ends to be one."""
        data = text.encode()
        return cls._make("lam_schedule_parse", data, len(data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """`parse` of a file."""
        with open(path, encoding="utf-8") as file:
            return cls.parse(file.read())

    @classmethod
    def _make(cls, function, *arguments):
        out = ctypes.c_void_p()
        library.check(getattr(native(), function)(*arguments, ctypes.byref(out)))
        return cls(out)

    def text(self, format: str = "text") -> str:
        """The table: "text", a line per rank, or "csv" as torch.distributed.pipelining has it."""
        return text_of(native().lam_schedule_write, self.pointer, format.encode())

    def stages_of(self, rank: int) -> list[int]:
        """The stages of a rank, ascending."""
        return list(self._stages[rank])

    def rank_of(self, stage: int) -> int:
        """The rank that a stage is on."""
        return next(rank for rank, stages in enumerate(self._stages) if stage in stages)

    def _info(self):
        info = pipeline_abi.ScheduleInfo()
        library.check(native().lam_schedule_check(self.pointer, ctypes.byref(info)))
        return info

    def check(self) -> Info:
        """Proves that it can run: every dependency met, every micro-batch once, no deadlock. Gives
        what it needs: Info, with makespan and bubbles for F, I and W of 1 each."""
        info = self._info()
        return Info(*[getattr(info, name) for name in Info._fields])

    def simulate(
        self,
        forward: Costs = 1,
        backward_input: Costs = 1,
        backward_weight: Costs = 1,
        transfer: Costs | None = None,
    ) -> Simulated:
        """Times it: each cost is a number, or a list of one per stage (`transfer`: one per edge),
        in any one unit, which its result is in too.

        A full backward costs input and weight together. `bubble` is the ranks' mean idle part of
        the makespan; `rank_bubble` counts only between a rank's own first start and last end.
        """
        costs = pipeline_abi.Costs(
            n_stages=self.n_stages,
            forward=_doubles(forward, self.n_stages),
            backward_input=_doubles(backward_input, self.n_stages),
            backward_weight=_doubles(backward_weight, self.n_stages),
            transfer=None if transfer is None else _doubles(transfer, self.n_stages - 1),
        )
        room = self._info().n_actions
        events = (pipeline_abi.Event * room)()
        out = pipeline_abi.Simulated(events=events, n_events=room)
        library.check(
            native().lam_schedule_simulate(self.pointer, ctypes.byref(costs), ctypes.byref(out))
        )
        found = events_of(events, out.n_events)
        return Simulated(out.makespan, out.bubble, out.rank_bubble, found)

    def __repr__(self) -> str:
        shape = self.n_ranks, self.n_stages, self.n_micro
        return "lamella.Schedule(%d ranks, %d stages, %d micro-batches)" % shape


def choose(
    ranks: int,
    micro_batches: int,
    stages_per_rank: int = 1,
    splits: bool = False,
    overlaps: bool = False,
    loose: bool = False,
    static_bytes: int = 0,
    activation_bytes: int = 0,
    cap_bytes: int = 0,
) -> Choice:
    """Which schedule "auto" is, and why: a Choice.

    stages_per_rank: that the model can be cut into; splits: every stage splits its backward;
    overlaps: a fused pair was measured to take less than F and B; loose: memory is no concern.
    Bytes are a rank's: always held; of one micro-batch; what it may hold (0: no cap).
    """
    desc = pipeline_abi.ChoiceDesc(
        flags=splits | overlaps << 1 | loose << 2,
        p=ranks,
        v=stages_per_rank,
        m=micro_batches,
        static_bytes=static_bytes,
        activation_bytes=activation_bytes,
        cap_bytes=cap_bytes,
    )
    out = pipeline_abi.Choice()
    library.check(native().lam_schedule_choose(ctypes.byref(desc), ctypes.byref(out)))
    return Choice(out.name.decode(), out.v, out.bytes, out.reason.decode())


def draw(
    events: Sequence[Event],
    format: str = "grid",
    paths: Mapping[tuple[int, str], str] | None = None,
) -> str:
    """A picture of events: "grid" (text), "svg", or "perfetto" (JSON for ui.perfetto.dev).

    paths: what carries messages of (edge, "F" activations or "I" gradients), as a Report's; with it
    "svg" and "perfetto" show them, from the work that made each to the work that read it on another
    rank. Events are of one step then."""
    known = (paths or {}).items()
    carriers = [(edge, KINDS.index(kind), path.encode()) for (edge, kind), path in known]
    table = (pipeline_abi.Event * len(events))(
        *[
            pipeline_abi.Event(*event._replace(kind=KINDS.index(event.kind))) for event in events
        ]
    )
    by = (pipeline_abi.Carrier * len(carriers))(*carriers)
    of = native().lam_events_draw_messages
    return text_of(of, table, len(events), by, len(carriers), format.encode())


def events_of(table, n) -> list[Event]:
    """Events from the library's own form."""
    return [
        Event(e.rank, e.stage, e.micro, KINDS[e.kind], e.part, e.start, e.end) for e in table[:n]
    ]


def _doubles(costs, n):
    values = list(costs) if hasattr(costs, "__iter__") else [costs] * n
    if len(values) != n:
        raise errors.InvalidArgument("%d costs, expected %d" % (len(values), n), 3)
    return (ctypes.c_double * n)(*values)


def _stages_by_rank(text, n_ranks):
    """The stages that stand in each rank's line."""
    found = [set() for _ in range(n_ranks)]
    for rank, actions in re.findall(r"^rank (\d+):(.*)$", text, re.M):
        found[int(rank)] = {int(s) for s in re.findall(r"(\d+)[FBIW]\d", actions)}
    return [sorted(stages) for stages in found]
