"""Groups of ranks that JAX knows: the devices of one process, or the processes of jax.distributed.

Invariant: a group's handle is the same on all its ranks, so that all compile the same program.
Leaves groups of other processes to lamella.Group.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import Any

import jax
import numpy

from lamella import Error, Group
from lamella.errors import FailedPrecondition, InvalidArgument
from lamella.group import settle


class LocalGroup:
    """All ranks in this process: the devices along `axis` of a mesh, under jax.shard_map.

    A rank is its device's index along that axis. deadline_ms, first_deadline_ms: how long a rank
    may be late, in ms, as in lamella.Group.create. Raises what that does.
    """

    size: int
    axis: str
    handle: int

    def __init__(self, size: int, axis: str, **deadlines: int) -> None:
        self.size, self.axis = size, axis
        self._ranks = join(size, deadlines)
        self.handle = self._ranks[0].handle

    def close(self) -> None:
        """Ends the group, as lamella.Group's does: once the calls that this thread gave JAX to do
        have ended. Compiled functions that name it fail from then on."""
        for group in self._ranks:
            group.close()

    def __enter__(self) -> LocalGroup:
        return self

    def __exit__(self, *error: Any) -> None:
        for group in self._ranks:
            group.__exit__(*error)

    def __repr__(self) -> str:
        return "lamella.jax.LocalGroup(%d ranks along %r)" % (self.size, self.axis)


def await_effects():
    """Until what this thread gave JAX to do has had its effects; how it ended, its results tell."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()


settle.append(await_effects)


def join(size, deadlines):
    """Every rank's lamella.Group; each is opened by a thread of its own, for they wait."""
    if size < 1:
        raise InvalidArgument("size is %d, expected at least 1" % size, 3)
    id, groups, problems = Group.new_id(), [None] * size, []

    def open_rank(rank):
        try:
            groups[rank] = Group.create(id, rank, size, **deadlines)
        except Error as problem:
            problems.append(problem)

    threads = [threading.Thread(target=open_rank, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return groups


def distributed_group(engine: str | None = None, **deadlines: int) -> Group:
    """The processes of jax.distributed, one rank each: a lamella.Group. Process 0 makes its id,
    which goes through jax.distributed's own service. engine "nccl": for processes that have one GPU
    each. Deadlines and what is raised are those of lamella.Group.create. Every process calls it, in
    the same order of groups."""
    rank, size = jax.process_index(), jax.process_count()
    gpu = own_gpu() if engine == "nccl" else None
    return Group.create(shared_id(rank), rank, size, engine=engine, gpu=gpu, **deadlines)


LONGEST_WAIT_MS = 600000  # for process 0, which may be compiling
_made = itertools.count()  # groups so far


def shared_id(rank):
    client = service()
    if client is None:
        return broadcast_id()
    key = "lamella/group/%d" % next(_made)
    if rank == 0:
        client.key_value_set(key, Group.new_id().hex())
    return bytes.fromhex(client.blocking_key_value_get(key, LONGEST_WAIT_MS))


def service():
    """jax.distributed's client; private to JAX, so not certain to stay."""
    try:
        from jax._src.distributed import global_state

        return global_state.client
    except (ImportError, AttributeError):
        return None


def broadcast_id():
    """The same by a program that all devices run."""
    from jax.experimental import multihost_utils

    mine = numpy.frombuffer(Group.new_id(), numpy.uint8).astype(numpy.int32)
    return numpy.asarray(multihost_utils.broadcast_one_to_all(mine)).astype(numpy.uint8).tobytes()


def own_gpu():
    """As CUDA counts this process's one GPU; None where JAX has none."""
    here = [d for d in jax.local_devices() if d.platform in ("gpu", "cuda")]
    if len(here) > 1:
        raise FailedPrecondition(
            "distributed_group: this process has %d GPUs, engine nccl takes one for each rank: "
            "give jax.distributed.initialize local_device_ids" % len(here), 9
        )
    return here[0].local_hardware_id if here else None
