"""One rank of several in PyTorch: `python ranks_torch.py CASE RANK SIZE PORT`, started by gpu_torch.py.

Each rank is a process with a card of its own; with NCCL_HOSTID set all are on the first one, each a machine
of its own to NCCL: right results, whose speed says nothing.
Invariant: prints "well" when a layer split over the ranks gave what the whole one does.
"""

import copy
import os
import sys

import torch
import torch.distributed as dist

import lamella
import lamella.torch

OPS = torch.ops.lamella
CASE, RANK, SIZE, PORT = sys.argv[1], *map(int, sys.argv[2:])
ONE_CARD = "NCCL_HOSTID" in os.environ
DEADLINES = {"deadline_ms": 30000, "first_deadline_ms": 120000}


def begin(backend):
    store = dist.TCPStore("127.0.0.1", PORT, SIZE, RANK == 0)
    device = torch.device("cuda", torch.cuda.current_device())
    eager = {"device_id": device} if backend == "nccl" else {}
    dist.init_process_group(backend, store=store, rank=RANK, world_size=SIZE, **eager)


def open_group():
    """own: torch's gloo carries the id, communicators are the group's. default: as the host's backend, NCCL,
    has it. adopted: split off torch's communicator. shm: the cards read each other."""
    begin("nccl" if CASE in ("default", "adopted") else "gloo")
    asked = {"own": {"engine": "nccl"}, "default": {}, "adopted": {"adopt": True}, "shm": {"engine": "shm"}}
    return lamella.torch.group(**asked[CASE], **DEADLINES)


def drawn(*shape, scale=1.0):
    """The same on all ranks."""
    return (torch.randn(*shape, generator=chance, dtype=torch.float64) * scale).float().cuda()


def shares(whole, dim):
    return whole.tensor_split(SIZE, dim)[RANK].contiguous()


def close(got, want, terms):
    off = (got.double() - want.double()).abs().max().item()
    bound = 4 * terms * 2.0**-23 * want.abs().max().item()
    assert off <= bound, "off by %.3g, at most %.3g expected" % (off, bound)


def check_sums(group):
    x, w = drawn(24, 512), drawn(96, 512, scale=0.05)
    y = OPS.linear_row(shares(x, 1), shares(w, 1), None, group=group.handle)
    close(y, x.double() @ w.double().T, 512)


def check_module(group):
    """Forward and backward of a module, on a stream that the host made, with memory of its own pool."""
    h, f = 128, 64 * SIZE
    w1, w2 = drawn(f, h, scale=h**-0.5), drawn(h, f, scale=f**-0.5)
    x, dy = drawn(40, h), drawn(40, h)
    ffn = lamella.torch.ParallelFFN(h, f, "gelu_tanh", bias=False, group=group).cuda()
    ffn.load_state_dict({"up.weight": w1, "down.weight": w2})
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            mine.grad = None
            ffn(mine).backward(dy)
    stream.synchronize()
    plain = torch.nn.functional
    plain.linear(plain.gelu(plain.linear(theirs, w1), approximate="tanh"), w2).backward(dy)
    close(mine.grad, theirs.grad, f)


def check_pipeline(group):
    """A stage of two layers on each rank, twice: weights' gradients as in one process."""
    width, rows, micros = 64, 24, 4
    layers = [torch.nn.Linear(width, width) for _ in range(2 * SIZE)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.copy_(drawn(width, width, scale=width**-0.5))
            layer.bias.copy_(drawn(width))
    whole = torch.nn.Sequential(*[torch.nn.Sequential(layer.cuda(), torch.nn.Tanh()) for layer in layers])
    own = copy.deepcopy(whole[2 * RANK : 2 * RANK + 2])
    x, y, mse = drawn(rows, width), drawn(rows, width), torch.nn.functional.mse_loss
    with lamella.torch.Pipeline(own, "1f1b", micros, group=group, loss_fn=mse) as pipeline:
        for _ in range(2):
            own.zero_grad()
            loss = pipeline.step(x, y)
        paths = pipeline.report().paths
    want = mse(whole(x), y)
    want.backward()
    assert loss is None or abs(loss - want.item()) <= 1e-5 * abs(want.item()), (loss, want.item())
    for mine, theirs in zip(own.parameters(), whole[2 * RANK : 2 * RANK + 2].parameters()):
        close(mine.grad, theirs.grad, 8 * rows)
    print("messages travel by", paths)


torch.cuda.set_device(0 if ONE_CARD else RANK)
torch.backends.cuda.matmul.allow_tf32 = False
chance = torch.Generator().manual_seed(int(os.environ.get("LAMELLA_TEST_SEED", "1")))
with open_group() as group:
    group.warmup()
    check_sums(group)
    check_module(group)
    check_pipeline(group)
    torch.cuda.synchronize()
    way, why = group.device_way
    print("operands travel by", way, why or "")
    assert CASE == "shm" or way == "nccl", way
    dist.barrier()
print("well", flush=True)
os._exit(0)  # torch's own groups end in an order that only some versions have right
