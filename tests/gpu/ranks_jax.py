"""One rank of several in JAX: `python ranks_jax.py CASE RANK SIZE PORT`, started by gpu_jax.py.

Each rank is a process of jax.distributed with a card of its own; with NCCL_HOSTID set all are on the first
one, each a machine of its own to NCCL: right results, whose speed says nothing.
Invariant: prints "well" when a layer split over the ranks, and a pipeline of them, gave what one process
does, gradients too.
"""

import os
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

import lamella.jax as lj
from lamella.pipeline import Schedule

CASE, RANK, SIZE, PORT = sys.argv[1], *map(int, sys.argv[2:])
ONE_CARD = "NCCL_HOSTID" in os.environ
DEADLINES = {"deadline_ms": 30000, "first_deadline_ms": 120000}


def close(got, want, terms):
    got, want = np.asarray(got, "d"), np.asarray(want, "d")
    off, most = np.max(np.abs(got - want)), 8 * terms * 2.0**-23 * np.max(np.abs(want))
    assert off <= most, "off by %.3g, at most %.3g expected" % (off, most)


def split(x, w1, w2, token):
    h, token = lj.linear_col(x, w1, act="silu", group=group, token=token)
    y, token = lj.linear_row(h, w2, group=group, token=token)
    return lj.after(jnp.sum(y**2), token)


def whole(x, w1, w2):
    return jnp.sum((jax.nn.silu(x @ w1) @ w2) ** 2)


def draw(*shape):
    """The same on all ranks."""
    return jnp.asarray(chance.standard_normal(shape) * shape[-2] ** -0.5, jnp.float32)


def check_gradients():
    x, w1, w2 = draw(24, 64), draw(64, 32 * SIZE), draw(32 * SIZE, 64)
    part = slice(RANK * 32, (RANK + 1) * 32)
    step = jax.jit(jax.grad(split, (0, 1, 2)))
    for _ in range(3):
        dx, d1, d2 = step(x, w1[:, part], w2[part], lj.new_token())
    want = jax.jit(jax.grad(whole, (0, 1, 2)))(x, w1, w2)
    for got, expected in ((dx, want[0]), (d1, want[1][:, part]), (d2, want[2][part])):
        close(got, expected, 32 * SIZE)


MICROS, ROWS, WIDTH = 4, 24, 64


def layer(w, x):
    return jnp.tanh(lj.linear(x, w))


def last(w, x, target):
    return jnp.mean((layer(w, x) - target) ** 2) / MICROS


def one_process(weights, xs, targets):
    def loss(x, target):
        for w in weights[:-1]:
            x = layer(w, x)
        return last(weights[-1], x, target)

    return sum(loss(x, target) for x, target in zip(xs, targets))


def check_pipeline(group, schedule, split):
    """A stage on each rank's card, twice. First and last are fed; between ranks activations go as they are."""
    weights = [draw(WIDTH, WIDTH) for _ in range(SIZE)]
    xs, targets = draw(MICROS, ROWS, WIDTH), draw(MICROS, ROWS, WIDTH)
    fed = {0: xs, SIZE - 1: targets}.get(RANK)
    feed = None if fed is None else lambda step, micro: (fed[micro],)
    stage = lj.PipelineStage(last if RANK == SIZE - 1 else layer, weights[RANK], feed, split=split)
    assert stage.place.device == jax.local_devices()[0]
    plan, edges = Schedule.build(schedule, SIZE, MICROS, 1), [[((ROWS, WIDTH), "f32")]] * (SIZE - 1)
    with lj.Pipeline(plan, {RANK: stage}, edges, group=group) as pipeline:
        for step in range(2):
            loss, found = pipeline.run(step), stage.take_gradients()
        paths = pipeline.report().paths
    want, wanted = jax.jit(jax.value_and_grad(one_process))(weights, xs, targets)
    close(loss, want if RANK == SIZE - 1 else 0.0, 8 * ROWS * WIDTH)
    close(found, wanted[RANK], 8 * ROWS * WIDTH)
    print(schedule, "messages travel by", paths)


chance = np.random.default_rng(int(os.environ.get("LAMELLA_TEST_SEED", "1")))
jax.config.update("jax_default_matmul_precision", "highest")
jax.distributed.initialize("127.0.0.1:%d" % PORT, SIZE, RANK, local_device_ids=[0 if ONE_CARD else RANK])
with lj.distributed_group(engine=CASE, **DEADLINES) as group:
    check_gradients()
    check_pipeline(group, "1f1b", split=False)
    check_pipeline(group, "zb-h1", split=True)
    way, why = group.device_way
    print("operands travel by", way, why or "")
    assert CASE == "shm" or way == "nccl", way
jax.distributed.shutdown()  # which waits for all of them
print("well", flush=True)
