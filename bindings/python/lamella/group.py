"""Groups: ordered sets of ranks, as operators name them.

Invariant: `places` knows every open group of this process by its handle, for hosts that trace
(shapes depend on a rank's place in its group). A call that has found a group keeps it, whoever
closes it meanwhile.
Leaves communication to the library.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable

from lamella import errors, interrupt, library

ID_BYTES = ctypes.sizeof(library.GroupId)
places: dict[int, tuple[int, int]] = {0: (0, 1)}  # handle -> (rank, size); 0 = alone
# Of hosts that run calls later than Python makes them: each waits for this thread's calls so far.
settle: list[Callable[[], None]] = []


def place(handle: int) -> tuple[int, int]:
    """(rank, size) in the group that a handle names."""
    try:
        return places[int(handle)]
    except KeyError:
        raise errors.NotFound("group %d is no open group of this process" % handle) from None


class Group:
    """An open group. `handle` is what operators take as `group`; it is equal on all ranks.

    A group lives until `close`, or the end of a `with`. Calls that wait for peers raise
    lamella.Error: PeerDead within 0.1 s of a peer's death, PeerStalled after the deadline, Mismatch
    where ranks call different things; then Poisoned. On the main thread they end on Ctrl-C, with
    KeyboardInterrupt.
    """

    rank: int
    size: int
    handle: int

    def __init__(self, pointer: ctypes.c_void_p) -> None:
        self._pointer = pointer
        info = self._info()
        self.pipelines = weakref.WeakSet()  # over this group: they end before it
        self.rank, self.size = info.rank, info.size
        self.handle = library.native().lam_group_handle(pointer)
        places[self.handle] = (self.rank, self.size)

    def __deepcopy__(self, memo):
        return self  # what was built on it may be copied

    def __reduce__(self):
        raise errors.Unimplemented(
            "a group cannot be pickled, nor what holds one, such as a split model: "
            "lamella.torch.save writes its weights"
        )

    @property
    def pointer(self) -> ctypes.c_void_p:
        """The library's; FailedPrecondition once the group is closed."""
        if not self._pointer:
            raise errors.FailedPrecondition("group %d is closed" % self.handle, 9)
        return self._pointer

    def _info(self):
        info = library.GroupInfo(struct_size=ctypes.sizeof(library.GroupInfo))
        library.check(library.native().lam_group_get_info(self.pointer, ctypes.byref(info)))
        return info

    @property
    def error(self) -> errors.Error | None:
        """What ended this group's world, a lamella.Error; None while all is well. For programs that
        met it as an exception of their host."""
        info = self._info()
        return errors.of_status(info.poison, info.error.decode()) if info.poison else None

    @property
    def device_way(self) -> tuple[str | None, str | None]:
        """How operands on a GPU travel, known from their first collective on: "threads", "ipc",
        "nccl", or "host" (with the reason, what calls then wait for); (None, None) before."""
        info = self._info()
        way, why = info.device_way, info.device_why
        return way and way.decode(), why.decode() if why else None

    @staticmethod
    def new_id() -> bytes:
        """128 bytes that name a group to be; one rank makes them, any channel carries them."""
        made = library.GroupId()
        library.check(library.native().lam_group_id_create(ctypes.byref(made)))
        return bytes(made.bytes)

    @classmethod
    def create(
        cls,
        id: bytes,
        rank: int,
        size: int,
        deadline_ms: int = 0,
        first_deadline_ms: int = 0,
        engine: str | None = None,
        gpu: int | None = None,
    ) -> Group:
        """Returns when all `size` ranks have come. Deadlines are in ms; 0 = the library's, 30 s,
        and 10 min for the first operation. engine: "shm", "nccl" (a GPU for each rank: this one's
        is `gpu`, or the thread's own device), None = the library's choice. Raises InvalidArgument
        for an id, rank or size that cannot be; PeerStalled where ranks do not come."""
        desc = _desc(rank, size, deadline_ms, first_deadline_ms, engine, gpu)
        desc.id.bytes[:] = _checked(id)
        return cls._open("lam_group_create", interrupt.context(), ctypes.byref(desc))

    @classmethod
    def from_env(
        cls,
        deadline_ms: int = 0,
        first_deadline_ms: int = 0,
        engine: str | None = None,
        gpu: int | None = None,
    ) -> Group:
        """From the environment that ./lamella run or torchrun makes. Deadlines in ms, engine and
        gpu as `create`. Raises FailedPrecondition where neither did, and what `create` does."""
        desc = _desc(0, 0, deadline_ms, first_deadline_ms, engine, gpu)
        return cls._open("lam_group_create_from_env", interrupt.context(), ctypes.byref(desc))

    @classmethod
    def adopt_nccl(
        cls,
        comm: int,
        id: bytes,
        rank: int,
        size: int,
        deadline_ms: int = 0,
        first_deadline_ms: int = 0,
        gpu: int | None = None,
    ) -> Group:
        """Over NCCL, split off the host's own communicator: comm is its ncclComm_t, as a number,
        rank and size its own. Collective: while nothing else uses it. Deadlines in ms, and the rest
        as `create`."""
        desc = _desc(rank, size, deadline_ms, first_deadline_ms, None, gpu)
        desc.id.bytes[:] = _checked(id)
        return cls._open("lam_group_adopt_nccl", interrupt.context(), ctypes.byref(desc), comm)

    def split(self, color: int, key: int = 0) -> Group | None:
        """Collective: ranks of one color form a group, by (key, rank); None for a color below 0."""
        return self._open("lam_group_split", self.pointer, color, key)

    @classmethod
    def _open(cls, function, *arguments):
        out = ctypes.c_void_p()
        library.check(getattr(library.native(), function)(*arguments, ctypes.byref(out)))
        return cls(out) if out.value else None

    def warmup(self) -> None:
        """Collective: uses every edge once, so that the first operation is not slower."""
        library.check(library.native().lam_group_warmup(self.pointer))

    def close(self) -> None:
        """Ends the group on this rank; a second time does nothing.

        The calls that this thread gave JAX to do come to their end first: peers come, or the
        deadline, or the world's end. Calls that other threads have under way end at once, with
        lamella.Error (CANCELLED) if they wait for a peer, and the world with them; those that come
        later raise NotFound. An exception that leaves a `with` waits for nothing: JAX's calls end
        as other threads' do.
        """
        try:
            for wait in settle if self._pointer else ():
                wait()
        finally:
            self._end()

    def _end(self) -> None:
        for pipeline in list(self.pipelines):
            pipeline.close()
        pointer, self._pointer = self._pointer, None
        if pointer:
            places.pop(self.handle, None)
            library.native().lam_group_destroy(pointer)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind:
            self._end()
        else:
            self.close()

    def __repr__(self) -> str:
        return "lamella.Group(rank %d of %d, handle %d)" % (self.rank, self.size, self.handle)


def grid(world: Group, tp: int, pp: int) -> tuple[Group, Group]:
    """(tensor group, pipeline group) of this rank: `tp` adjacent ranks hold the parts of the same
    layers, and ranks tp apart the pipeline's stages. Collective over `world`, whose size is a
    multiple of tp * pp (else InvalidArgument): each block of so many ranks is a replica."""
    if tp < 1 or pp < 1 or world.size % (tp * pp):
        raise errors.InvalidArgument(
            "grid: tp %d x pp %d, of %d ranks: expected a divisor" % (tp, pp, world.size), 3
        )
    replica, place = divmod(world.rank, tp * pp)
    tensor = world.split(world.rank // tp, world.rank)
    return tensor, world.split(replica * tp + place % tp, world.rank)


def _checked(id):
    """An id's bytes; what has another length was cut off, or is none."""
    if not isinstance(id, (bytes, bytearray)) or len(id) != ID_BYTES:
        found = "%d bytes" % len(id) if hasattr(id, "__len__") else type(id).__name__
        raise errors.InvalidArgument(
            "id: found %s, expected the %d bytes that new_id gives" % (found, ID_BYTES), 3
        )
    return id


def _desc(rank, size, deadline_ms, first_deadline_ms, engine=None, gpu=None):
    return library.GroupDesc(
        struct_size=ctypes.sizeof(library.GroupDesc),
        rank=rank,
        size=size,
        deadline_ms=deadline_ms,
        first_deadline_ms=first_deadline_ms,
        engine=engine and engine.encode(),
        gpu=0 if gpu is None else gpu + 1,
    )
