"""Groups for PyTorch programs.

Invariant: every rank that takes part calls `group` once, in the same order of groups.
Leaves groups themselves to lamella.group.
"""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from lamella import errors
from lamella.group import Group

FAILED_PRECONDITION = 9


def group(
    process_group: dist.ProcessGroup | None = None,
    engine: str | None = None,
    adopt: bool = False,
    **deadlines: int,
) -> Group:
    """A group with the ranks of an initialised torch.distributed (of `process_group`, or all), its
    id carried by that one's store. Else from the environment of torchrun or ./lamella run.

    engine: None is "nccl" where the process group's only backend is NCCL, else the library's
    choice. Over NCCL a rank's GPU is torch's current device, and the communicators are the group's
    own: no call of theirs waits for longer than the deadline. adopt=True splits them off torch's
    communicator instead, while nothing else uses it; what its network was set up with they then
    share. Deadlines, in ms, and what is raised are those of lamella.Group.create."""
    if adopt:
        return adopted(process_group, **deadlines)
    if not (dist.is_available() and dist.is_initialized()):
        return Group.from_env(engine=engine, gpu=gpu_for(engine), **deadlines)
    if engine is None and is_nccl(process_group):
        engine = "nccl"
    place = place_in(process_group)
    return Group.create(*place, engine=engine, gpu=gpu_for(engine), **deadlines)


def adopted(process_group: dist.ProcessGroup | None, **deadlines: int) -> Group:
    if not (dist.is_available() and dist.is_initialized()):
        raise errors.FailedPrecondition(
            "group: adopt, without an initialised torch.distributed", FAILED_PRECONDITION
        )
    comm = torchs_own(process_group)
    return Group.adopt_nccl(comm, *place_in(process_group), gpu=gpu_for("nccl"), **deadlines)


def place_in(process_group: dist.ProcessGroup | None) -> tuple[bytes, int, int]:
    rank = dist.get_rank(process_group)
    return shared_id(process_group, rank), rank, dist.get_world_size(process_group)


def gpu_for(engine: str | None) -> int | None:
    """The GPU that a group over NCCL works on; to ask torch for it starts CUDA."""
    return torch.cuda.current_device() if engine == "nccl" and torch.cuda.is_available() else None


def is_nccl(process_group: dist.ProcessGroup | None) -> bool:
    """Whether NCCL is all that it has: a program that keeps another backend beside it, for tensors
    of the host, may have several ranks on one GPU."""
    return dist.get_backend(process_group) == dist.Backend.NCCL


def torchs_own(process_group: dist.ProcessGroup | None) -> int:
    """Torch's ncclComm_t for the current device. Private to torch, like the store; 0 is what it
    answers before it has made one."""
    whole = process_group or distributed_c10d._get_default_group()
    try:
        pointer = whole._get_backend(torch.device("cuda"))._comm_ptr()
    except (AttributeError, RuntimeError):
        pointer = 0
    if pointer:
        return pointer
    raise errors.FailedPrecondition(
        "group: torch has no NCCL communicator to adopt for GPU %s: give device_id to "
        "init_process_group, or run a collective there first; or leave adopt out" % gpu_for("nccl"),
        FAILED_PRECONDITION,
    )


_made: Counter[str] = Counter()  # groups so far, by the name of their process group


def shared_id(process_group: dist.ProcessGroup | None, rank: int) -> bytes:
    """An id of rank 0's on all ranks; those that come early wait as long as the store lets them."""
    store, name = store_of(process_group)
    if store is None:  # a broadcast: over GPUs, where torch has nothing else
        root = dist.get_global_rank(process_group, 0) if process_group else 0
        box = [Group.new_id() if rank == 0 else None]
        dist.broadcast_object_list(box, src=root, group=process_group)
        return box[0]
    key = "lamella/group/%s/%d" % (name, _made[name])
    _made[name] += 1
    if rank == 0:
        store.set(key, Group.new_id().hex())
    return bytes.fromhex(store.get(key).decode())


def store_of(process_group: dist.ProcessGroup | None) -> tuple[dist.Store | None, str]:
    """Private to torch to know, so not certain to stay."""
    try:
        whole = process_group or distributed_c10d._get_default_group()
        return distributed_c10d._get_process_group_store(whole), whole.group_name
    except (AttributeError, KeyError):
        return None, ""
