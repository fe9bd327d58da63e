"""Every row that can be differentiated, over two ranks of one process, beside JAX's own.

Layers and the vocabulary are held against the whole model's jax.value_and_grad; what only moves
tensors against its forward and backward in jax.lax, on cotangents that differ by rank.
"""

import os

import jax
import jax.numpy as jnp
import lamella.jax as lj
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from lamella.jax import grads

SEED = int(os.environ.get("LAMELLA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
RANKS = 2
DEADLINES = {"deadline_ms": 20000, "first_deadline_ms": 60000}
# f32: sums of at most 32 products, a few layers deep, in another order
TOLERANCE = 2.0**-17


@pytest.fixture(scope="module")
def group():
    with lj.LocalGroup(RANKS, "tp", **DEADLINES) as made:
        yield made


@pytest.fixture
def draw():
    print("LAMELLA_TEST_SEED=%d" % SEED)
    chance = np.random.default_rng(SEED)
    return lambda *shape: jnp.asarray(chance.standard_normal(shape), jnp.float32)


def sharded(f, in_specs, out_specs):
    mesh = Mesh(np.array(jax.devices()[:RANKS]), ("tp",))
    given = {"mesh": mesh, "check_vma": False, "in_specs": in_specs, "out_specs": out_specs}
    return jax.jit(jax.shard_map(f, **given))


def check_close(got, want):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, "d"), np.asarray(w, "d")
        assert g.shape == w.shape
        assert np.max(np.abs(g - w)) <= TOLERANCE * (1 + np.max(np.abs(w)))


# -- layers: (row called, the whole, shapes, how they are split, how y is) --

COLS, ROWS, PART = P(None, "tp"), P("tp", None), P("tp")
TARGETS = jnp.asarray([[1, 7, 0], [3, -100, 4]], jnp.int32)
IDS = jnp.asarray([[3, 0, 7], [3, 5, 2]], jnp.int32)


def gated(x, w1, w2):
    """w1 [4, 2 x 8]: for each rank its gate columns, then its up columns."""
    h = (x @ w1).reshape(*x.shape[:-1], RANKS, 2, 4)
    return (jax.nn.silu(h[..., 0, :]) * h[..., 1, :]).reshape(*x.shape[:-1], 8) @ w2


def losses(logits):
    logs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logs, jnp.maximum(TARGETS, 0)[..., None], -1)[..., 0]
    return jnp.where(TARGETS < 0, 0, -picked)


def rmsnorm(x, g):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * g


LAYERS = {
    "linear": (
        lambda at, x, w, b: (lj.linear(x, w, b, act="silu"), at["token"]),
        lambda x, w, b: jax.nn.silu(x @ w + b),
        [(3, 5), (5, 4), (4,)],
        [P(), P(), P()],
        P(),
    ),
    "linear_col": (
        lambda at, x, w, b: lj.linear_col(x, w, b, act="gelu", **at),
        lambda x, w, b: jax.nn.gelu(x @ w + b, approximate=False),
        [(3, 5), (5, 8), (8,)],
        [P(), COLS, PART],
        COLS,
    ),
    "linear_col gather": (
        lambda at, x, w: lj.linear_col(x, w, gather=1, act="relu2", **at),
        lambda x, w: jax.nn.relu(x @ w) ** 2,
        [(3, 5), (5, 8)],
        [P(), COLS],
        P(),
    ),
    "linear_col seq": (
        lambda at, x, w: lj.linear_col(x, w, seq=6, **at),
        lambda x, w: x @ w,
        [(6, 5), (5, 8)],
        [ROWS, COLS],
        COLS,
    ),
    "linear_row": (
        lambda at, x, w, b: lj.linear_row(x, w, b, **at),
        lambda x, w, b: x @ w + b,
        [(2, 3, 8), (8, 5), (5,)],
        [P(None, None, "tp"), ROWS, P()],
        P(),
    ),
    "linear_row split=0": (
        lambda at, x, w: lj.linear_row(x, w, split=0, total=8, **at),
        lambda x, w: x @ w,
        [(3, 8), (8, 5)],
        [P(), ROWS],
        P(),
    ),
    "linear_row seq": (
        lambda at, x, w: lj.linear_row(x, w, seq=6, **at),
        lambda x, w: x @ w,
        [(6, 8), (8, 5)],
        [COLS, ROWS],
        ROWS,
    ),
    "ffn": (
        lambda at, x, w1, b1, w2, b2: lj.ffn(x, w1, b1, w2, b2, act="gelu_tanh", **at),
        lambda x, w1, b1, w2, b2: jax.nn.gelu(x @ w1 + b1) @ w2 + b2,
        [(3, 4), (4, 8), (8,), (8, 4), (4,)],
        [P(), COLS, PART, ROWS, P()],
        P(),
    ),
    "ffn gated": (
        lambda at, x, w1, w2: lj.ffn(x, w1, None, w2, act="silu", gated=1, **at),
        gated,
        [(3, 4), (4, 16), (8, 4)],
        [P(), COLS, ROWS],
        P(),
    ),
    "ffn seq": (
        lambda at, x, w1, w2: lj.ffn(x, w1, None, w2, act="relu", seq=6, **at),
        lambda x, w1, w2: jax.nn.relu(x @ w1) @ w2,
        [(6, 4), (4, 8), (8, 4)],
        [ROWS, COLS, ROWS],
        ROWS,
    ),
    "embedding_vocab": (
        lambda at, w: lj.embedding_vocab(IDS, w, total=8, **at),
        lambda w: w[IDS],
        [(8, 5)],
        [ROWS],
        P(),
    ),
    "embedding_vocab seq": (
        lambda at, w: lj.embedding_vocab(IDS, w, total=8, seq=2, **at),
        lambda w: w[IDS],
        [(8, 5)],
        [ROWS],
        PART,
    ),
    "cross_entropy_vocab": (
        lambda at, logits: lj.cross_entropy_vocab(logits, TARGETS, total=8, **at)[::2],
        losses,
        [(2, 3, 8)],
        [P(None, None, "tp")],
        P(),
    ),
    "all_reduce_add_rmsnorm": (
        lambda at, x, res, g: lj.all_reduce_add_rmsnorm(x, res, g, eps=1e-5, **at)[::2],
        lambda x, res, g: rmsnorm(RANKS * x + res, g),
        [(2, 3, 5), (2, 3, 5), (5,)],
        [P(), P(), P()],
        P(),
    ),
    "all_reduce_add_rmsnorm, what is normed": (
        lambda at, x, res, g: lj.all_reduce_add_rmsnorm(x, res, g, **at)[1:],
        lambda x, res, g: RANKS * x + res + 0 * g,
        [(3, 5), (3, 5), (5,)],
        [P(), P(), P()],
        P(),
    ),
    "rmsnorm": (
        lambda at, x, g: (lj.rmsnorm(x, g, eps=1e-5), at["token"]),
        rmsnorm,
        [(2, 3, 5), (5,)],
        [P(), P()],
        P(),
    ),
}


def backward(f, arguments, dy):
    y, pull = jax.vjp(f, *arguments)
    return y, pull(dy)


WITH_WEIGHTS = [(name, True) for name in LAYERS if name.startswith(("linear_", "ffn"))]


@pytest.mark.parametrize("name, apart", [*((name, False) for name in LAYERS), *WITH_WEIGHTS])
def test_a_layers_gradients_are_the_whole_ones(group, draw, name, apart):
    call, whole, shapes, specs, y_spec = LAYERS[name]
    arguments = [draw(*shape) for shape in shapes]
    dy = draw(*jax.eval_shape(whole, *arguments).shape)

    def ours(*given):
        def f(*arguments):
            y, token = call({"group": group, "token": lj.new_token()}, *arguments)
            return lj.after(y, token)

        return backward(f, given[:-1], given[-1])

    step = sharded(ours, (*specs, y_spec), (y_spec, tuple(specs)))
    if apart:
        with grads.apart():
            found = step(*arguments, dy)
    else:
        found = step(*arguments, dy)
    check_close(found, backward(whole, arguments, dy))


# -- what moves tensors: (row called, forward, backward; of one rank's part, by jax.lax) --


def rank():
    return jax.lax.axis_index("tp")


def summed(x):
    return jax.lax.psum(x, "tp")


def gathered(dim):
    return lambda x: jax.lax.all_gather(x, "tp", axis=dim, tiled=True)


def scattered(dim):
    return lambda x: jax.lax.psum_scatter(x, "tp", scatter_dimension=dim, tiled=True)


def own(dim):
    def part(x):
        n = x.shape[dim] // RANKS
        return jax.lax.dynamic_slice_in_dim(x, rank() * n, n, dim)

    return part


def from_root(x):
    return summed(jnp.where(rank() == 1, x, 0))


def to_root(x):
    return jnp.where(rank() == 1, summed(x), 0)


def same(x):
    return x


def sent(at, x):
    """Rank 0's x at rank 1, which gives rank 0 zeros to go on with."""

    def send(x, token):
        return 0 * x, lj.send_activation(x, peer=1, tag=7, group=at["group"], token=token)

    def receive(x, token):
        form = {"shape": x.shape, "dtype": x.dtype, "tag": 7, "peer": 0}
        return lj.recv_activation(group=at["group"], token=token, **form)

    return jax.lax.cond(rank() == 0, send, receive, x, at["token"])


def shifted(to):
    """What the other rank has, at rank `to`; zeros elsewhere."""
    return lambda x: jnp.where(rank() == to, jax.lax.ppermute(x, "tp", [(0, 1), (1, 0)]), 0)


def by(function, **attributes):
    return lambda at, x: function(x, **attributes, **at)


def reduced(at, x):
    y, token = lj.reduce(x, root=1, **at)
    return jnp.where(rank() == 1, y, 0), token  # elsewhere it is not written


MOVERS = {
    "all_reduce": (by(lj.all_reduce), summed, summed),
    "all_gather": (by(lj.all_gather, dim=1), gathered(1), scattered(1)),
    "reduce_scatter": (by(lj.reduce_scatter, dim=1), scattered(1), gathered(1)),
    "broadcast": (by(lj.broadcast, root=1), from_root, to_root),
    "reduce": (reduced, to_root, from_root),
    "copy_to_group": (by(lj.copy_to_group), same, summed),
    "reduce_from_group": (by(lj.reduce_from_group), summed, same),
    "gather_from_group": (by(lj.gather_from_group), gathered(1), own(1)),
    "scatter_to_group": (by(lj.scatter_to_group), own(1), gathered(1)),
    "gather_sequence": (by(lj.gather_sequence), gathered(0), scattered(0)),
    "scatter_sequence": (by(lj.scatter_sequence), own(0), gathered(0)),
    "send_activation recv_activation": (sent, shifted(1), shifted(0)),
}


@pytest.mark.parametrize("name", MOVERS)
def test_what_moves_forward_moves_back(group, draw, name):
    call, there, back = MOVERS[name]
    x, noise = draw(RANKS * 4, 6), draw(RANKS * 16, 12)

    def cotangent(y):
        return noise[: y.shape[0], : y.shape[1]] * (1.0 + rank())

    def ours(x):
        token = lj.new_token()
        (y, last), pull = jax.vjp(
            lambda x, token: call({"group": group, "token": token}, x), x, token
        )
        return y, pull((cotangent(y), last))[0]

    def theirs(x):
        y = there(x)
        return y, back(cotangent(y))

    # All by rows, though some are equal on all ranks: every rank's own result is compared.
    found, want = (sharded(f, P("tp"), (P("tp"), P("tp")))(x) for f in (ours, theirs))
    check_close(found, want)


def test_every_row_with_a_gradient_is_in_one_of_the_tables():
    named = {word for case in (*LAYERS, *MOVERS) for word in case.split()}
    assert set(grads.GRADS) <= named
