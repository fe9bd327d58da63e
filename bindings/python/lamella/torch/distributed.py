"""Groups for PyTorch programs.

Invariant: every rank that takes part calls `group` once, in the same order of groups.
Leaves groups themselves to lamella.group.
"""

from __future__ import annotations

from collections import Counter

import torch.distributed as dist
from torch.distributed import distributed_c10d

from lamella.group import Group


def group(process_group: dist.ProcessGroup | None = None, **deadlines: int) -> Group:
    """A group with the ranks of an initialised torch.distributed (of `process_group`, or all), its
    id carried by that one's store. Else from the environment of torchrun or ./lamella run.
    Deadlines, in ms, and what is raised are those of lamella.Group.create."""
    if not (dist.is_available() and dist.is_initialized()):
        return Group.from_env(**deadlines)
    rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
    return Group.create(shared_id(process_group, rank), rank, size, **deadlines)


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
