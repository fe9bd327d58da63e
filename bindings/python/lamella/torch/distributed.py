"""Groups for PyTorch programs.

Invariant: every rank that takes part calls `group` once, in the same order of groups.
Leaves groups themselves to lamella.group.
"""

from __future__ import annotations

import torch.distributed as dist

from lamella.group import Group


def group(process_group: dist.ProcessGroup | None = None, **deadlines: int) -> Group:
    """A group with the ranks of an initialised torch.distributed (of `process_group`, or all), its
    id broadcast by that: over its GPUs, where it has no other backend. Else from the environment of
    torchrun or ./lamella run."""
    if not (dist.is_available() and dist.is_initialized()):
        return Group.from_env(**deadlines)
    root = dist.get_global_rank(process_group, 0) if process_group else 0
    rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
    box = [Group.new_id() if rank == 0 else None]
    dist.broadcast_object_list(box, src=root, group=process_group)
    return Group.create(box[0], rank, size, **deadlines)
