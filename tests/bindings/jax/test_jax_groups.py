"""Groups in JAX: ranks as devices under shard_map, order, and what is refused."""

import ctypes
import os
import re
from functools import partial

import decoder
import jax
import jax.numpy as jnp
import lamella
import lamella.jax as lj
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from lamella import library
from lamella.jax import call, grads

SEED = int(os.environ.get("LAMELLA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
DEADLINES = {"deadline_ms": 20000, "first_deadline_ms": 60000}


@pytest.fixture
def draw():
    print("LAMELLA_TEST_SEED=%d" % SEED)
    chance = np.random.default_rng(SEED)
    return lambda *shape: jnp.asarray(chance.standard_normal(shape), jnp.float32)


@pytest.fixture(params=[1, 2, 4])
def group(request):
    with lj.LocalGroup(request.param, "tp", **DEADLINES) as made:
        yield made


@pytest.fixture
def pair():
    with lj.LocalGroup(2, "tp", **DEADLINES) as made:
        yield made


def sharded(group, f, in_specs, out_specs):
    mesh = Mesh(np.array(jax.devices()[: group.size]), ("tp",))
    specs = {"in_specs": in_specs, "out_specs": out_specs}
    return jax.jit(jax.shard_map(f, mesh=mesh, check_vma=False, **specs))


def close(got, want, bits=16):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, "d"), np.asarray(w, "d")
        assert g.shape == w.shape
        assert np.max(np.abs(g - w)) <= 2.0**-bits * (1 + np.max(np.abs(w)))


# -- tensor parallel --

COLS, ROWS = P(None, "tp"), P("tp", None)


def test_a_split_mlp_and_its_gradients_are_those_of_one_device(group, draw):
    weights = draw(8, 16), draw(16), draw(16, 8), draw(8)
    specs = COLS, P("tp"), ROWS, P()
    x = draw(2, 3, 8)

    def split(x, w1, b1, w2, b2):
        h, token = lj.linear_col(x, w1, b1, act="gelu", group=group, token=lj.new_token())
        y, token = lj.linear_row(h, w2, b2, group=group, token=token)
        return jnp.sum(y**2)

    def whole(x, w1, b1, w2, b2):
        return jnp.sum((jax.nn.gelu(x @ w1 + b1, approximate=False) @ w2 + b2) ** 2)

    wrt = tuple(range(5))
    step = sharded(group, jax.value_and_grad(split, wrt), (P(), *specs), (P(), (P(), *specs)))
    want = jax.value_and_grad(whole, wrt)(x, *weights)
    for _ in range(3):  # the second is compiled already
        close(step(x, *weights), want)


@pytest.mark.parametrize("seq", [0, 12])
def test_an_ffn_in_one_call_is_that_of_one_device(group, draw, seq):
    x, w1, w2 = draw(12, 8), draw(8, 16), draw(16, 8)

    def split(x, w1, w2):
        y, _ = lj.ffn(x, w1, None, w2, act="relu", seq=seq, group=group, token=lj.new_token())
        return jnp.sum(y**2)

    def whole(x, w1, w2):
        return jnp.sum((jax.nn.relu(x @ w1) @ w2) ** 2)

    rows = P("tp") if seq else P()
    specs = (rows, COLS, ROWS)
    found = sharded(group, jax.grad(split, (0, 1, 2)), specs, specs)(x, w1, w2)
    close(found, jax.grad(whole, (0, 1, 2))(x, w1, w2))


def test_a_gathered_column_split_gives_the_whole_and_its_gradient(group, draw):
    x, w = draw(3, 8), draw(8, 12)

    def split(x, w):
        y, _ = lj.linear_col(x, w, gather=1, act="silu", group=group, token=lj.new_token())
        return jnp.sum(y**2)

    found = sharded(group, jax.grad(split, (0, 1)), (P(), COLS), (P(), COLS))(x, w)
    close(found, jax.grad(lambda x, w: jnp.sum(jax.nn.silu(x @ w) ** 2), (0, 1))(x, w))


def test_a_row_split_of_whole_activations_takes_its_share(group, draw):
    x, w = draw(3, 8), draw(8, 12)

    def split(x, w):
        y, _ = lj.linear_row(x, w, split=0, total=8, group=group, token=lj.new_token())
        return jnp.sum(y**2)

    found = sharded(group, jax.grad(split, (0, 1)), (P(), ROWS), (P(), ROWS))(x, w)
    close(found, jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), (0, 1))(x, w))


# -- vocabulary --


def test_a_split_vocabulary_and_its_loss_are_those_of_one_device(group, draw):
    vocabulary, hidden = 16, 6
    table, head = draw(vocabulary, hidden), draw(hidden, vocabulary)
    ids = jnp.asarray([[3, 0, 15], [7, 8, 3]], jnp.int32)
    targets = jnp.asarray([[1, 15, 0], [9, -100, 4]], jnp.int32)  # one is ignored
    at = {"group": group}  # even shares: total need not be said

    def split(table, head):
        x, token = lj.embedding_vocab(ids, table, token=lj.new_token(), **at)
        logits, token = lj.linear_col(x, head, group=group, token=token)
        loss, lse, token = lj.cross_entropy_vocab(logits, targets, token=token, **at)
        return lj.after(jnp.sum(loss * (1 + jnp.arange(3))), token)

    def whole(table, head):
        logs = jax.nn.log_softmax(table[ids] @ head)
        picked = jnp.take_along_axis(logs, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
        return jnp.sum(jnp.where(targets < 0, 0, -picked) * (1 + jnp.arange(3)))

    specs = P("tp", None), COLS
    found = sharded(group, jax.value_and_grad(split, (0, 1)), specs, (P(), specs))(table, head)
    close(found, jax.value_and_grad(whole, (0, 1))(table, head))


# -- a whole decoder --


def spec_of(path, x):
    dim, _ = decoder.SPLIT.get(path[-1].key, (None, 0))
    return P() if dim is None else P(*[None] * dim, "tp")


def test_a_decoder_trains_under_shard_map_as_on_one_device(draw):
    """Three ranks; the tolerance is test_jax_processes.py's."""
    del draw  # it prints the seed
    params, drawn = decoder.start(SEED)
    specs = jax.tree_util.tree_map_with_path(spec_of, params)
    found, after = decoder.train_whole(SEED)
    state = None
    with lj.LocalGroup(3, "tp", **DEADLINES) as three:
        loss_of = decoder.stage(0, 1, three, 1)
        step_of = sharded(three, jax.value_and_grad(loss_of), (specs, P(), P()), (P(), specs))
        for step, (want, wanted) in enumerate(found):
            loss, gradients = step_of(params, *drawn[:, step].reshape(2, -1, decoder.TOKENS))
            assert abs(float(loss) - want) <= 2.0**-17 * want
            assert decoder.far(gradients, wanted) <= 2.0**-17
            params, state = decoder.adamw(params, jax.tree.map(np.asarray, gradients), state)
    assert decoder.far(params, after) <= 2.0**-14


# -- collectives: row, what XLA's own does in its place, per-rank shapes --

PEERS = {
    "all_reduce": (lj.all_reduce, lambda x: jax.lax.psum(x, "tp")),
    "all_gather": (
        partial(lj.all_gather, dim=1),
        lambda x: jax.lax.all_gather(x, "tp", axis=1, tiled=True),
    ),
    "reduce_scatter": (
        partial(lj.reduce_scatter, dim=1),
        lambda x: jax.lax.psum_scatter(x, "tp", scatter_dimension=1, tiled=True),
    ),
    "gather_sequence": (
        lj.gather_sequence,
        lambda x: jax.lax.all_gather(x, "tp", axis=0, tiled=True),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_collective_and_its_gradient_are_xlas_own(group, draw, name):
    ours, theirs = PEERS[name]
    x = draw(4 * group.size, 8)
    weight = draw(64, 64)

    def ours_with_token(x):
        return ours(x, group=group, token=lj.new_token())[0]

    def both(f):
        def run(x):
            scale = (1 + jax.lax.axis_index("tp")).astype(jnp.float32)  # ranks' losses differ
            y, pull = jax.vjp(f, x)
            return y, pull(y * scale * weight[: y.shape[0], : y.shape[1]])[0]

        return sharded(group, run, P("tp"), (P("tp"), P("tp")))

    close(both(ours_with_token)(x), both(theirs)(x))


# -- order --


def operations(group):
    """How many operations each rank has announced so far."""
    found = []
    for rank in group._ranks:
        info = library.GroupInfo(struct_size=ctypes.sizeof(library.GroupInfo))
        library.check(library.native().lam_group_get_info(rank._pointer, ctypes.byref(info)))
        found.append(info.operations)
    return found


def test_equal_calls_are_not_merged_and_unused_ones_not_dropped(pair, draw):
    x = draw(3)

    def f(x):
        token = lj.new_token()
        for _ in range(5):
            y, token = lj.all_reduce(x, group=pair, token=token)
        for _ in range(3):
            _, token = lj.all_reduce(x, group=pair, token=token)
        return y

    run = sharded(pair, f, P(), P())
    before = operations(pair)
    close(run(x), 2 * x)
    assert [n - b for n, b in zip(operations(pair), before)] == [8, 8]


def test_calls_that_depend_on_nothing_keep_their_order(pair, draw):
    """Rank 1 makes its calls one after the other, each fed by the one before. Rank 0's depend on
    nothing but their tokens, and those that come first have the most work before them. Shapes
    differ from call to call: any other order is a mismatch of the two ranks."""
    xs = [draw(n, 4) for n in range(1, 9)]
    work = draw(60, 60)

    def delayed(i, x):
        times = jnp.int32(10 * (8 - i))
        busy = jax.lax.fori_loop(0, times, lambda _, m: jnp.tanh(m @ m), work)
        return x + 0 * busy[0, 0]

    def free(xs):
        token, ys = lj.new_token(), []
        for i, x in enumerate(xs):
            y, token = lj.all_reduce(delayed(i, x), group=pair, token=token)
            ys.append(y)
        return tuple(ys)

    def fed(xs):
        token, ys = lj.new_token(), [jnp.zeros((1, 1))]
        for x in xs:
            y, token = lj.all_reduce(x + 0 * ys[-1][0, 0], group=pair, token=token)
            ys.append(y)
        return tuple(ys[1:])

    def f(*xs):
        return jax.lax.cond(jax.lax.axis_index("tp") == 0, free, fed, xs)

    run = sharded(pair, f, tuple([P()] * 8), tuple([P()] * 8))
    for _ in range(5):
        close(run(*xs), [2 * x for x in xs])


def chain_of(compiled, target):
    """For each call of `target` in a compiled program, by its own name: whose token it takes."""
    text = compiled.as_text()
    defined = dict(re.findall(r"(%[\w.-]+) = (.*)", text))

    def giver(name):
        while "custom-call(" not in defined[name]:
            inner = re.search(r"(?:get-tuple-element|copy|bitcast)\(.*?(%[\w.-]+)\)", defined[name])
            if not inner:
                return None  # a constant: the first of a chain
            name = inner.group(1)
        return name

    calls = {name: line for name, line in defined.items() if '"lamella_%s"' % target in line}
    operands = {n: re.search(r"custom-call\((.*?)\), custom", calls[n]).group(1) for n in calls}
    return {n: giver(re.findall(r"%[\w.-]+", operands[n])[1]) for n in calls}


@pytest.mark.parametrize("backward", [False, True])
def test_every_token_is_the_one_that_the_call_before_gave(pair, draw, backward):
    """In the program as compiled: no pass of XLA broke the chain, forward or backward."""

    def f(*xs):
        token, total = lj.new_token(), 0.0
        for x in xs:
            y, token = lj.all_reduce(x, group=pair, token=token)
            total += jnp.sum(y**2)
        return lj.after(total, token)

    xs = [draw(n) for n in (3, 4, 5, 6)]
    one, all_of = (P(), tuple([P()] * 4))
    g = jax.grad(f, (0, 1, 2, 3)) if backward else f
    run = sharded(pair, g, all_of, all_of if backward else one)
    chain = chain_of(run.lower(*xs).compile(), "all_reduce")
    assert len(chain) == (8 if backward else 4)
    takers = [giver for giver in chain.values() if giver]
    assert len(set(takers)) == len(takers) == len(chain) - 1, chain
    if backward:
        close(run(*xs), [8 * x for x in xs])


def test_a_backward_that_needs_nothing_of_the_forward_still_comes_after_it(pair, draw):
    def f(x):
        return jnp.sum(lj.all_reduce(x, group=pair, token=lj.new_token())[0])

    run = sharded(pair, jax.grad(f), P(), P())
    chain = chain_of(run.lower(draw(3)).compile(), "all_reduce")
    assert sorted(giver is None for giver in chain.values()) == [False, True]


# -- what the tests of order are worth: without tokens, or without the side effect, they fail --


@pytest.fixture
def without_effect(monkeypatch):
    real = jax.ffi.ffi_call

    def plain(target, results, has_side_effect):
        return real(target, results)

    monkeypatch.setattr(jax.ffi, "ffi_call", plain)


@pytest.fixture
def without_tokens(monkeypatch):
    """Every call is given a token of its own, whatever the program threads."""
    real = call.call

    def apart(row, inputs, attrs, group=None, token=None, *others):
        return real(row, inputs, attrs, group, call.zero(), *others)

    monkeypatch.setattr(call, "call", apart)
    monkeypatch.setattr(grads, "call", apart)


def test_without_the_side_effect_calls_are_dropped(pair, draw, without_effect):
    with pytest.raises(AssertionError):
        test_equal_calls_are_not_merged_and_unused_ones_not_dropped(pair, draw)


@pytest.mark.parametrize("backward", [False, True])
def test_without_tokens_no_call_follows_another(pair, draw, without_tokens, backward):
    with pytest.raises(AssertionError):
        test_every_token_is_the_one_that_the_call_before_gave(pair, draw, backward)


@pytest.mark.usefixtures("without_tokens", "without_effect")
def test_without_tokens_and_effect_equal_calls_are_merged(pair, draw):
    x = draw(3)

    def f(x):
        token, total = lj.new_token(), 0
        for _ in range(5):
            y, token = lj.all_reduce(x, group=pair, token=token)
            total += y
        return total

    before = operations(pair)
    sharded(pair, f, P(), P())(x).block_until_ready()
    assert [n - b for n, b in zip(operations(pair), before)] == [1, 1]


# -- refusals --


def test_a_second_chain_of_a_group_is_refused(pair, draw):
    def f(x):
        y, _ = lj.all_reduce(x, group=pair, token=lj.new_token())
        return lj.reduce(y, group=pair, token=lj.new_token())[0]

    line = "reduce: token: it is a new one, and all_reduce has begun a chain"
    with pytest.raises(lamella.Error, match=line):
        sharded(pair, f, P(), P())(draw(3))


def test_a_token_for_two_calls_is_refused(pair, draw):
    def f(x):
        token = lj.new_token()
        y, _ = lj.all_reduce(x, group=pair, token=token)
        return lj.all_reduce(y, group=pair, token=token)[0]

    line = "all_reduce: token: it was given to all_reduce already"
    with pytest.raises(lamella.Error, match=line):
        sharded(pair, jax.grad(lambda x: jnp.sum(f(x))), P(), P())(draw(3))


def test_one_chain_through_branches_loops_and_other_groups_is_taken(pair, draw):
    def f(x):
        token = lj.new_token()
        x, token = lj.all_reduce(x, group=pair, token=token)

        def once(x):  # both branches are given this token
            return lj.all_reduce(x, group=pair, token=token)

        def again(carry, _):
            return lj.all_reduce(carry[0], group=pair, token=carry[1]), None

        x, token = jax.lax.cond(jax.lax.axis_index("tp") >= 0, once, once, x)
        (x, token), _ = jax.lax.scan(again, (x, token), length=2)
        x, token = lj.all_reduce(x, group=other, token=token)
        return lj.all_reduce(x, group=pair, token=token)[0]

    x = draw(3)
    with lj.LocalGroup(2, "tp", **DEADLINES) as other:
        run = sharded(pair, f, P(), P())
        for _ in range(2):
            close(run(x), 64 * x)


def test_uneven_shares_under_shard_map_are_refused(pair, draw):
    def f(x):
        return lj.scatter_to_group(x, group=pair, token=lj.new_token())[0]

    run = sharded(pair, f, P(), P())
    line = "scatter_to_group: rank 0 gets .* all ranks have the same"
    with pytest.raises(lamella.Error, match=line):
        run(draw(2, 3))


def test_a_group_without_a_token_is_refused(pair, draw):
    with pytest.raises(TypeError, match="all_reduce: token: found None, expected the token"):
        lj.all_reduce(draw(3), group=pair)


def test_a_group_that_cannot_come_together_says_so():
    with pytest.raises(lamella.Error) as caught:
        lamella.Group.create(lamella.Group.new_id(), 0, 2, deadline_ms=100, first_deadline_ms=200)
    assert "rank 1" in str(caught.value)
