"""A rank of torch.distributed over a real TCPStore: `python nccl_ranks.py RANK SIZE PORT`, started by
test_torch_groups.py. What torch would show of GPUs and NCCL is stood in for, and so are the library's
calls, but for one that this machine refuses.

Invariant: prints `CLAIM: what all ranks must say alike`; a claim that does not hold ends the process.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bindings/python"))

import torch
import torch.distributed as dist

import lamella
import lamella.torch
from lamella.group import Group

RANK, SIZE, PORT = map(int, sys.argv[1:])


def refused(kind, **asked):
    try:
        lamella.torch.group(**asked)
    except kind as error:
        return str(error)
    raise AssertionError("no exception")


def stand_in():
    """NCCL's communicator as torch shows it: what `shown` holds."""
    shown = SimpleNamespace(comm=0)
    on_gpu = SimpleNamespace(_comm_ptr=lambda: shown.comm)
    torch.cuda.is_available, torch.cuda.current_device = (lambda: True), (lambda: 4 + RANK)
    type(dist.group.WORLD)._get_backend = lambda self, device: {"cuda": on_gpu}[device.type]
    Group.create = staticmethod(lambda *given, **named: ("create", given, named))
    Group.adopt_nccl = staticmethod(lambda *given, **named: ("adopt", given, named))
    return shown


def expect(found, name, *given, **named):
    """The id among what was given; the rest must be as expected."""
    ids = [g for g in found[1] if isinstance(g, bytes)]
    rest = tuple(g for g in found[1] if not isinstance(g, bytes))
    assert (found[0], rest, found[2]) == (name, given, named), found
    assert [len(id) for id in ids] == [128]
    return ids[0].hex()


store = dist.TCPStore("127.0.0.1", PORT, SIZE, RANK == 0)
dist.init_process_group("gloo", store=store, rank=RANK, world_size=SIZE)
if not torch.cuda.is_available():
    print("without a GPU:", refused(lamella.Error, engine="nccl", deadline_ms=20000))

shown = stand_in()
found = lamella.torch.group(deadline_ms=7)
of_gloo = expect(found, "create", RANK, SIZE, engine=None, gpu=None, deadline_ms=7)
dist.distributed_c10d._world.pg_map[dist.group.WORLD] = ("nccl", store)
of_nccl = expect(lamella.torch.group(), "create", RANK, SIZE, engine="nccl", gpu=4 + RANK)
assert of_gloo != of_nccl
print("default:", of_nccl)
found = lamella.torch.group(engine="shm")
print("asked:", expect(found, "create", RANK, SIZE, engine="shm", gpu=None))

said = refused(lamella.errors.FailedPrecondition, adopt=True)
assert "for GPU %d: give device_id to init_process_group" % (4 + RANK) in said
print("nothing to adopt:", said.replace("GPU %d" % (4 + RANK), "GPU"))
shown.comm = 0x7000 + RANK
found = lamella.torch.group(adopt=True, deadline_ms=9)
print("adopted:", expect(found, "adopt", shown.comm, RANK, SIZE, gpu=4 + RANK, deadline_ms=9))
dist.barrier()
