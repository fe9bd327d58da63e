"""Operators and pipelines in JAX on a CUDA card: numbers and gradients, beside jax.numpy's in full precision.

Run by ./lamella test --gpu.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import lamella.jax as lj  # noqa: E402
import ranks  # noqa: E402
from lamella.pipeline import Schedule  # noqa: E402

SEED = int(os.environ.get("LAMELLA_TEST_SEED", "0")) or int.from_bytes(os.urandom(3), "little")
ACTS = {
    "": lambda x: x,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
}


def on_a_gpu():
    try:
        return jax.devices()[0].platform in ("gpu", "cuda")
    except RuntimeError:
        return False


if not on_a_gpu():
    pytest.skip("jax finds no GPU", allow_module_level=True)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def draw():
    print("LAMELLA_TEST_SEED=%d" % SEED)
    chance = np.random.default_rng(SEED)
    return lambda *shape, dtype=jnp.float32: jnp.asarray(chance.standard_normal(shape), dtype)


def close(got, want, bits):
    got, want = np.asarray(got, "d"), np.asarray(want, "d")
    assert got.shape == want.shape
    worst = np.max(np.abs(got - want), initial=0)
    assert worst <= 2.0**-bits * (1 + np.max(np.abs(want), initial=0)), worst


def gradients(f, *arrays):
    def loss(*a):
        return jnp.sum(f(*a).astype(jnp.float32) ** 2)

    return jax.jit(jax.grad(loss, tuple(range(len(arrays)))))(*arrays)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype, bits", [(jnp.float32, 16), (jnp.bfloat16, 5)])
def test_linear_and_its_gradients(draw, act, dtype, bits):
    x, w, b = draw(40, 72, dtype=dtype), draw(72, 56, dtype=dtype), draw(56, dtype=dtype)

    def ours(x, w, b):
        return lj.linear(x, w, b, act=act)

    def theirs(x, w, b):
        return ACTS[act](x.astype(jnp.float32) @ w.astype(jnp.float32) + b.astype(jnp.float32))

    y = jax.jit(ours)(x, w, b)
    assert y.dtype == dtype and list(y.devices())[0].platform in ("gpu", "cuda")
    close(y, theirs(x, w, b), bits)
    for got, want in zip(gradients(ours, x, w, b), gradients(theirs, x, w, b)):
        close(got, want, bits - 2)


@pytest.mark.parametrize("gated", [0, 1])
def test_ffn_and_its_gradients(draw, gated):
    x, w1, w2 = draw(24, 64), draw(64, (1 + gated) * 96), draw(96, 64)

    def ours(x, w1, w2):
        return lj.ffn(x, w1, None, w2, None, act="silu", gated=gated)

    def theirs(x, w1, w2):
        z = x @ w1
        h = jax.nn.silu(z[:, :96]) * z[:, 96:] if gated else jax.nn.silu(z)
        return h @ w2

    close(jax.jit(ours)(x, w1, w2), theirs(x, w1, w2), 14)
    for got, want in zip(gradients(ours, x, w1, w2), gradients(theirs, x, w1, w2)):
        close(got, want, 12)


def test_many_calls_of_one_program_give_the_same(draw):
    x, w = draw(64, 128, dtype=jnp.bfloat16), draw(128, 128, dtype=jnp.bfloat16)

    @jax.jit
    def chain(x, w):
        for _ in range(20):
            x = lj.linear(x, w, act="gelu_tanh") * jnp.bfloat16(0.1)
        return x

    found = [np.asarray(chain(x, w).astype(jnp.float32)) for _ in range(5)]
    assert all(np.array_equal(found[0], each) for each in found)


def test_mistakes_are_named_and_the_next_call_works(draw):
    x, w = draw(4, 8), draw(8, 3)
    with pytest.raises(Exception, match="lamella|linear"):
        jax.jit(lj.linear)(x, draw(7, 3)).block_until_ready()
    close(jax.jit(lj.linear)(x, w), x @ w, 16)


# -- pipelines --

WHOLE = " ".join("0F%d 1F%d 1B%d 0B%d".replace("%d", str(micro)) for micro in range(4))
IN_TWO = "0F0 1F0 0F1 1F1 1I1 0I1 1I0 0I0 0F2 1F2 1W0 1W1 0W0 1I2 0I2 0W1 0F3 1F3 1I3 0I3 0W3 0W2 1W3 1W2"


def first_stage(w, x):
    return jnp.tanh(lj.linear(x, w["w"], w["b"]))


def last_stage(w, h, target):
    return jnp.mean((lj.linear(h, w["w"]) - target) ** 2) / 4


def staged(draw, schedule, width=96, rows=32, **more):
    """(pipeline, stages, loss and gradients of one function)"""
    params = {"w": draw(width, width), "b": draw(width)}, {"w": draw(width, width)}
    xs, targets = draw(4, rows, width), draw(4, rows, width)

    def whole(params):
        return sum(last_stage(params[1], first_stage(params[0], x), t) for x, t in zip(xs, targets))

    stages = {
        0: lj.PipelineStage(first_stage, params[0], lambda step, micro: (xs[micro],), **more),
        1: lj.PipelineStage(last_stage, params[1], lambda step, micro: (targets[micro],), **more),
    }
    edges, order = [[((rows + 8, width), "f32")]], {"any_order": bool(more)}
    made = lj.Pipeline(Schedule.parse(schedule), stages, edges, **order)
    return made, stages, jax.jit(jax.value_and_grad(whole))(params)


@pytest.mark.parametrize("schedule, split", [(WHOLE, False), (IN_TWO, True)])
def test_a_pipeline_of_one_rank_gives_one_functions_gradients(draw, schedule, split):
    pipeline, stages, (want, wanted) = staged(draw, schedule, **({"split": True} if split else {}))
    with pipeline:
        for step in range(20):  # slots are used again, and what JAX gave its memory back for
            close(pipeline.run(step), want, 14)
            for i, gradient in enumerate(wanted):
                found = stages[i].take_gradients()
                for name in gradient:
                    assert list(found[name].devices())[0].platform in ("gpu", "cuda")
                    close(found[name], gradient[name], 12)
        assert pipeline.report().device_times == 1


def test_a_pipelines_mistake_ends_its_step_and_the_next_one_is_right(draw):
    pipeline, stages, (want, _) = staged(draw, WHOLE)
    with pipeline:
        right, stages[0].params = stages[0].params, {"w": draw(96, 200), "b": draw(200)}
        with pytest.raises(Exception, match="the edge's is at most"):
            pipeline.run(0)
        stages[0].params = right
        close(pipeline.run(1), want, 14)


# -- ranks as processes --


@pytest.mark.parametrize("engine", ["nccl", "shm"])
def test_two_processes_on_one_card(engine):
    ranks.run("ranks_jax.py", engine, 2, one_card=True)


@pytest.mark.parametrize("engine", ["nccl", "shm"])
@pytest.mark.parametrize("n", range(2, ranks.MOST + 1))
def test_a_rank_on_each_card(n, engine):
    ranks.need(n, len(jax.local_devices()))
    ranks.run("ranks_jax.py", engine, n)
