"""Groups of ranks: processes, or devices of one process.

Invariant: a group's handle is the same on all its ranks, so that all compile the same program.
Leaves which rank a call is made for to call.py, where the process holds several.
"""

import ctypes
import threading

import jax
import numpy

from lamella.jax import native


class Group:
    """An ordered set of ranks. Make it with `local`, `create`, `from_env` or `distributed`.

    axis: the mesh axis whose index is the rank; needed where one process holds several ranks.
    """

    def __init__(self, pointers, axis):
        self._pointers, self.axis = pointers, axis
        first = info(next(iter(pointers.values())))
        self.size, self.engine = first.size, first.engine.decode()
        self.handle = lam().lam_group_handle(next(iter(pointers.values())))

    @property
    def local_ranks(self):
        """The ranks that this process holds."""
        return sorted(self._pointers)

    @property
    def operations(self):
        """How many operations each local rank has announced so far."""
        return {rank: info(pointer).operations for rank, pointer in self._pointers.items()}

    def destroy(self):
        """Ends the group; never waits. Compiled functions that name it fail from then on."""
        pointers, self._pointers = self._pointers, {}
        for pointer in pointers.values():
            lam().lam_group_destroy(pointer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    @classmethod
    def create(cls, id, rank, size, **deadlines):
        """This process is one rank; all ranks must come. id: bytes from `new_id` of one of them.

        deadline_ms, first_deadline_ms: how long a peer may be late (30 s; 10 min the first time).
        """
        return cls({rank: create_rank(id, rank, size, deadlines)}, axis=None)

    @classmethod
    def from_env(cls):
        """This process is the rank that its launcher says (./lamella run, torchrun, MPI, srun)."""
        pointer = ctypes.c_void_p()
        native.check(lam().lam_group_create_from_env(None, None, ctypes.byref(pointer)))
        return cls({info(pointer).rank: pointer}, axis=None)

    @classmethod
    def distributed(cls, **deadlines):
        """The processes of jax.distributed, one rank each; process 0 makes the id."""
        from jax.experimental import multihost_utils

        mine = numpy.frombuffer(new_id(), numpy.uint8).astype(numpy.int32)
        id = multihost_utils.broadcast_one_to_all(mine)
        id = numpy.asarray(id).astype(numpy.uint8).tobytes()
        return cls.create(id, jax.process_index(), jax.process_count(), **deadlines)

    @classmethod
    def local(cls, size, axis, **deadlines):
        """All ranks in this process: the devices along `axis` of a mesh, under shard_map."""
        id, pointers, problems = new_id(), {}, []

        def join(rank):
            try:
                pointers[rank] = create_rank(id, rank, size, deadlines)
            except native.Error as problem:
                problems.append(problem)

        threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        return cls(pointers, axis)


def lam():
    return native.libraries()[0]


def new_id():
    """128 bytes that name a new group; carry them to the other ranks by any way."""
    id = native.GroupId()
    native.check(lam().lam_group_id_create(ctypes.byref(id)))
    return bytes(id.bytes)


def create_rank(id, rank, size, deadlines):
    desc = native.GroupDesc(ctypes.sizeof(native.GroupDesc), rank, size, **deadlines)
    ctypes.memmove(desc.id.bytes, id, native.ID_BYTES)
    pointer = ctypes.c_void_p()
    native.check(lam().lam_group_create(None, ctypes.byref(desc), ctypes.byref(pointer)))
    return pointer


def info(pointer):
    found = native.GroupInfo(ctypes.sizeof(native.GroupInfo))
    native.check(lam().lam_group_get_info(pointer, ctypes.byref(found)))
    return found
