"""One process of several: `python process.py CASE RANK SIZE PORT FOLDER`, started by
test_jax_processes.py. Prints "well" when what it claims held.

Invariant: every process runs the same file; a case that differs by rank says so by `rank`.
"""

import os
import pickle
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bindings/python"))

import jax
import jax.numpy as jnp
import lamella
import lamella.jax as lj
import lamella.jax.group as lj_group
import numpy as np
from decoder import train
from lamella.pipeline import Schedule

DEADLINES = {"deadline_ms": 20000, "first_deadline_ms": 60000}


def close(got, want):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.max(np.abs(np.asarray(g) - np.asarray(w))) < 1e-4, (g, w)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape) + shape[0]).standard_normal(shape), "f")


def tensor_parallel(rank, size, group):
    """Each process holds its shards; jit and grad know nothing of the others."""
    x, w1, w2 = draw(6, 8), draw(8, 12), draw(12, 8)
    n = 12 // size
    part = slice(rank * n, (rank + 1) * n)
    mine = w1[:, part], w2[part]

    def split(x, w1, w2):
        h, token = lj.linear_col(x, w1, act="relu", group=group, token=lj.new_token())
        y, token = lj.linear_row(h, w2, group=group, token=token)
        return lj.after(jnp.sum(y**2), token)

    def whole(x, w1, w2):
        return jnp.sum((jax.nn.relu(x @ w1) @ w2) ** 2)

    dx, d1, d2 = jax.jit(jax.grad(split, (0, 1, 2)))(x, *mine)
    want, want1, want2 = jax.grad(whole, (0, 1, 2))(x, w1, w2)
    close((dx, d1, d2), (want, want1[:, part], want2[part]))


def uneven(rank, size, group):
    """Processes compile for themselves, so shares may differ: 7 features over the ranks."""
    x, w = draw(4, 5), draw(5, 7)
    first = sum(7 // size + (r < 7 % size) for r in range(rank))
    mine = w[:, first : first + 7 // size + (rank < 7 % size)]

    def split(w):
        y, token = lj.linear_col(x, w, gather=1, total=7, group=group, token=lj.new_token())
        return lj.after(jnp.sum(y**2), token), y

    dw, y = jax.jit(jax.grad(split, has_aux=True))(mine)
    close(y, x @ w)
    close(dw, jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)[:, first : first + mine.shape[1]])


def pipeline(rank, size, group):
    """Rank 0 sends its activations on; the gradient comes back. Two micro-batches."""
    xs, w0, w1 = draw(2, 4, 6), draw(6, 5), draw(5, 3)

    def first(w, token):
        for tag, x in enumerate(xs):
            h = jnp.tanh(lj.linear(x, w))
            token = lj.send_activation(h, group=group, peer=1, tag=tag, token=token)
        return token[0]

    def last(w, token):
        loss = 0.0
        for tag in range(2):
            h, token = lj.recv_activation(
                shape=(4, 5), dtype=jnp.float32, group=group, peer=0, tag=tag, token=token
            )
            loss += jnp.sum(lj.linear(h, w) ** 2)
        return lj.after(loss, token)

    def whole(w0, w1):
        return jnp.sum((jnp.tanh(xs @ w0) @ w1) ** 2)

    stage, w = (first, w0) if rank == 0 else (last, w1)
    step = jax.jit(jax.value_and_grad(stage, (0, 1)))
    for _ in range(2):
        loss, (dw, _) = step(w, lj.new_token())
    close(dw, jax.grad(whole, rank)(w0, w1))
    if rank == 1:
        close(loss, whole(w0, w1))


def decoder(rank, size, group):
    """Trained over tp=2 x pp=2, then over pp=2 (ranks 0 and 1) and tp=2 (ranks 2 and 3).

    Losses and gradients are sums of at most 48 tokens' terms, each the result of some ten products
    in another order: 2^-17 = 64 roundings is far above what is seen, 2^-20, and far below any
    mistake. AdamW divides gradients by their size: weights may be off by a little more.
    """
    seed, want = pickle.loads(Path(os.environ["WHOLE"]).read_bytes())
    given = {"seed": seed, "want": want}
    row, column = group.split(rank // 2), group.split(rank % 2)
    run_1f1b = Schedule.build("1f1b", 2, 4)
    found = {"tp x pp": train(run_1f1b, group=column, tensor=row, **given)}
    if rank < 2:
        late = {"split": True, "any_order": True}
        found["pp"] = train(Schedule.build("zb-h1", 2, 4), group=row, tensor=None, **late, **given)
    else:
        alone = Schedule.build("1f1b", 1, 4)
        found["tp"] = train(alone, group=None, tensor=row, **given)
    print(found)
    for loss, gradients, weights in found.values():
        assert max(loss, gradients) <= 2.0**-17 and weights <= 2.0**-14, found


def mismatch(rank, size, group):
    """Ranks that call different shapes both hear of it, at once."""
    f = jax.jit(lambda x: lj.all_reduce(x, group=group, token=lj.new_token())[0])
    try:
        jax.block_until_ready(f(draw(3 + rank)))
    except jax.errors.JaxRuntimeError as error:
        assert "FAILED_PRECONDITION" in str(error) and "all_reduce f32 [4]" in str(error), error
        return
    raise AssertionError("no exception")


def sums_ranks(rank, size, group):
    y = jax.jit(lambda x: lj.all_reduce(x, group=group, token=lj.new_token())[0])(draw(3) * rank)
    close(y, draw(3) * sum(range(size)))


def distributed(rank, size, group):
    """The group was made of jax.distributed's processes, its id carried by their service; another by
    a program of theirs, where JAX does not show the service."""
    assert (jax.process_index(), jax.process_count()) == (rank, size)
    sums_ranks(rank, size, group)
    on_nccl(rank)
    lj_group.service = lambda: None
    with lj.distributed_group(**DEADLINES) as other:
        assert other.handle != group.handle
        sums_ranks(rank, size, other)


def on_nccl(rank):
    """Over NCCL a process's GPU is JAX's own. This machine has none, which all ranks are told."""
    asked, gpus = [], lj_group.own_gpu
    create, lamella.Group.create = lamella.Group.create, staticmethod(lambda *a, **k: asked.append((a, k)))
    lj_group.own_gpu = lambda: 4 + rank
    lj.distributed_group(engine="nccl", deadline_ms=7)
    lamella.Group.create, lj_group.own_gpu = create, gpus
    [((id, *place), named)] = asked
    assert len(id) == 128 and place == [rank, 2]
    assert named == {"engine": "nccl", "gpu": 4 + rank, "deadline_ms": 7}, named
    if any(d.platform != "cpu" for d in jax.local_devices()):
        return
    try:
        lj.distributed_group(engine="nccl", **DEADLINES)
    except lamella.Error as error:
        assert "rank 0 cannot use NCCL: " in str(error), error
        return
    raise AssertionError("no exception")


def unused(function):
    """`function`, once the service is not there."""

    def used():
        assert lj_group.service() is None
        return function()

    return used


def open_group(case, rank, size, port, folder):
    if case == "distributed":
        jax.distributed.initialize("127.0.0.1:%s" % port, size, rank)
        lj_group.broadcast_id = unused(lj_group.broadcast_id)
        return lj.distributed_group(**DEADLINES)
    return lamella.Group.create((Path(folder) / "id").read_bytes(), rank, size, **DEADLINES)


def main(case, rank, size, port, folder):
    rank, size = int(rank), int(size)
    group = open_group(case, rank, size, port, folder)
    globals()[case](rank, size, group)
    print("well", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
