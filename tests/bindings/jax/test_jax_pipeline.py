"""JAX functions as stages: what is read in place, kept and put off. Training over ranks is
test_jax_processes.py's."""

import ctypes
import os

import jax
import jax.numpy as jnp
import lamella
import lamella.jax as lj
import numpy as np
import pytest
from lamella.jax import native, places, residuals, rows, split, views
from lamella.pipeline import Schedule, Stage, View

SEED = int(os.environ.get("LAMELLA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))


@pytest.fixture
def draw():
    print("LAMELLA_TEST_SEED=%d" % SEED)
    chance = np.random.default_rng(SEED)
    return lambda *shape: jnp.asarray(chance.standard_normal(shape), jnp.float32)


def close(got, want, bits=18):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, "d"), np.asarray(w, "d")
        assert g.shape == w.shape
        assert np.max(np.abs(g - w)) <= 2.0**-bits * (1 + np.max(np.abs(w)))


# Two stages on one rank, two micro-batches; the second with its backward in two.
WHOLE = "0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"
IN_TWO = "0F0 1F0 1I0 0I0 0F1 1F1 1I1 1W0 0I1 0W1 0W0 1W1"


def first(w, x):
    return jnp.tanh(lj.linear(x, w["w"], w["b"]))


def last(w, h, target):
    return jnp.mean((lj.linear(h, w["w"]) - target) ** 2) / 2


def stages_of(params, xs, targets, split):
    return {
        0: lj.PipelineStage(first, params[0], lambda step, micro: (xs[micro],), split=split),
        1: lj.PipelineStage(last, params[1], lambda step, micro: (targets[micro],), split=split),
    }


@pytest.mark.parametrize("schedule, split", [(WHOLE, False), (WHOLE, True), (IN_TWO, True)])
def test_gradients_are_those_of_one_function(draw, schedule, split):
    params = {"w": draw(5, 4), "b": draw(4)}, {"w": draw(4, 3)}
    xs, targets = draw(2, 6, 5), draw(2, 6, 3)

    def whole(params):
        return sum(last(params[1], first(params[0], x), t) for x, t in zip(xs, targets))

    want, wanted = jax.value_and_grad(whole)(params)
    stages = stages_of(params, xs, targets, split)
    edges = [[jax.ShapeDtypeStruct((8, 4), jnp.float32)]]  # with room for more than comes
    with lj.Pipeline(Schedule.parse(schedule), stages, edges, any_order=split) as pipeline:
        for step in range(2):
            close(pipeline.run(step), want)
            close([stages[i].take_gradients() for i in range(2)], wanted)


def test_a_pipeline_for_forwards_alone_keeps_nothing(draw):
    params = {"w": draw(5, 4), "b": draw(4)}, {"w": draw(4, 3)}
    xs, targets = draw(2, 6, 5), draw(2, 6, 3)
    stages = stages_of(params, xs, targets, False)
    want = sum(last(params[1], first(params[0], x), t) for x, t in zip(xs, targets))
    edges = [[((6, 4), "f32")]]
    with lj.Pipeline(Schedule.parse(WHOLE), stages, edges, forward_only=True) as pipeline:
        close(pipeline.run(), want)
    assert not stages[0]._flights and stages[0].gradients is None


def test_stages_are_trained_in_one_pipeline_and_tried_in_another(draw):
    params = {"w": draw(5, 4), "b": draw(4)}, {"w": draw(4, 3)}
    stages = stages_of(params, draw(2, 6, 5), draw(2, 6, 3), False)
    plan, edges = Schedule.parse(WHOLE), [[((6, 4), "f32")]]
    with lj.Pipeline(plan, stages, edges) as training:
        with lj.Pipeline(plan, stages, edges, forward_only=True) as trying:
            want = training.run(0)
            wanted = [stages[i].take_gradients() for i in range(2)]
            for step in range(2):
                close(trying.run(step), want)
                assert not stages[0]._flights
                close(training.run(step), want)
                close([stages[i].take_gradients() for i in range(2)], wanted)


# -- memory --


def view_of(array):
    """A View as a pipeline makes one, of NumPy's memory."""
    dims = (ctypes.c_int64 * array.ndim)(*array.shape)
    kind = native.data_type(array.dtype)
    tensor = native.Tensor(array.ctypes.data, 1, 0, array.ndim, kind, dims, None, 0)
    return View(tensor)


def aligned(shape, dtype):
    """NumPy memory that starts where a pipeline's does: at a multiple of 64 bytes."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + n].view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_a_view_is_read_where_it_is_and_written_in_place(dtype):
    memory = aligned((2, 3), dtype)
    memory[:] = np.arange(6).reshape(2, 3)
    array = views.borrow(view_of(memory))
    assert array.unsafe_buffer_pointer() == memory.ctypes.data
    assert array.dtype == dtype and np.array_equal(array, memory)
    view = view_of(aligned((4, 3), dtype))
    places.Host(jax.devices()[0]).write(view, array, "x")
    assert view.shape == (2, 3)
    assert bytes(view.memory()) == memory.tobytes()


@pytest.mark.parametrize(
    "shape, dtype, line",
    [
        ((3, 3), jnp.float32, r"x has shape \(3, 3\), the edge's is at most \(2, 3\)"),
        ((2, 3, 1), jnp.float32, r"the edge's is at most \(2, 3\)"),
        ((2, 3), jnp.bfloat16, "x is bfloat16, the edge's dtype is float32"),
    ],
)
def test_what_does_not_fit_an_edge_is_refused(shape, dtype, line):
    memory = aligned((2, 3), "f")
    with pytest.raises(lamella.Error, match=line):
        places.Host(jax.devices()[0]).write(view_of(memory), jnp.ones(shape, dtype), "x")
    assert not memory.any()


class Keeps(Stage):
    """Sees where a pipeline has the activations."""

    keeps_input = True

    def forward(self, io):
        self.found = [(view.data, view.data % 64) for view in io.inputs]

    def backward(self, io):
        pass


def test_activations_lie_where_jax_needs_no_copy():
    """At a multiple of 64 bytes."""

    class Gives(Stage):
        def forward(self, io):
            pass

        backward = forward

    seen = Keeps()
    schedule, edges = Schedule.parse("0F0 1F0 1B0 0B0"), [[((3, 5), "f32"), ((3,), "bf16")]]
    with lj.Pipeline(schedule, {0: Gives(), 1: seen}, edges) as pipeline:
        pipeline.run()
    assert [rest for _, rest in seen.found] == [0, 0]


# -- what a forward leaves --


def test_a_forward_leaves_no_second_copy_of_weights_and_activations(draw):
    w, v, x = draw(5, 4), draw(4, 3), draw(6, 5)

    def f(w, v, x):
        return lj.linear(lj.linear(x, w), v)

    def forward(*arguments):
        y, pull = jax.vjp(f, *arguments)
        return y, residuals.take(pull, arguments)

    y, left = jax.jit(forward)(w, v, x)
    assert [made.shape for made in left.made] == [(6, 4)]
    back = jax.jit(lambda left, dy, *arguments: residuals.give(left, arguments)(dy))
    close(back(left, y, w, v, x), jax.vjp(lambda w, v, x: x @ w @ v, w, v, x)[1](y))


def names_of(part):
    text = str(part).replace(" ", "\n")
    return {name for name in rows.table() if "lamella_%s\n" % name in text}


def test_the_first_part_of_a_backward_computes_no_weight_gradient(draw):
    x, w, f1, f2 = draw(6, 5), draw(5, 4), draw(4, 8), draw(8, 4)
    with lj.LocalGroup(1, "tp") as group:
        group = group._ranks[0]

        def stage(params, x):
            token = lj.new_token()
            h, token = lj.linear_col(x, params[0], act="gelu", group=group, token=token)
            y, token = lj.ffn(h, params[1], None, params[2], group=group, token=token)
            return lj.after(y, token)

        y, pull = jax.vjp(stage, (w, f1, f2), x)
        parts = split.Split(lambda _, dy: pull(dy)[::-1], (), y)
        early, made = parts.first((), y)
        late = parts.second((), made)
    assert names_of(parts.parts[0]) == {"act_bwd", "linear_col_dgrad", "ffn_dgrad"}
    assert names_of(parts.parts[1]) == {"linear_col_wgrad", "ffn_wgrad"}

    def whole(p, x):
        return jax.nn.gelu(x @ p[0], approximate=False) @ p[1] @ p[2]

    _, want = jax.vjp(whole, (w, f1, f2), x)
    close([late, *early], want(y))


# -- failures --


def test_what_a_stage_raises_comes_out_of_run(draw):
    def broken(w, x):
        raise KeyError("mine")

    stage = lj.PipelineStage(broken, {"w": draw(2, 2)}, lambda step, micro: (draw(2, 2),))
    with lj.Pipeline(Schedule.parse("0F0 0B0"), {0: stage}, []) as pipeline:
        with pytest.raises(KeyError, match="mine"):
            pipeline.run()


@pytest.mark.parametrize("schedule, split", [(WHOLE, False), (IN_TWO, True)])
def test_a_failed_step_leaves_nothing_for_the_next(draw, schedule, split):
    params = {"w": draw(5, 4), "b": draw(4)}, {"w": draw(4, 3)}
    stages = stages_of(params, draw(2, 6, 5), draw(2, 6, 3), split)
    feed = stages[1].feed

    def fails_late(step, micro):
        if step == 1 and micro == 1:
            raise KeyError("mine")
        return feed(step, micro)

    stages[1].feed = fails_late
    edges = [[((6, 4), "f32")]]
    with lj.Pipeline(Schedule.parse(schedule), stages, edges, any_order=split) as pipeline:
        want = pipeline.run(0)
        wanted = [stages[i].take_gradients() for i in range(2)]
        with pytest.raises(KeyError, match="mine"):
            pipeline.run(1)
        assert not any(stage._flights or stage._late for stage in stages.values())
        close(pipeline.run(2), want)
        close([stages[i].take_gradients() for i in range(2)], wanted)


def test_a_result_of_another_shape_than_its_edges_names_the_stage(draw):
    params = {"w": draw(5, 4), "b": draw(4)}, {"w": draw(4, 3)}
    stages = stages_of(params, draw(2, 6, 5), draw(2, 6, 3), False)
    with lj.Pipeline(Schedule.parse(WHOLE), stages, [[((5, 4), "f32")]]) as pipeline:
        with pytest.raises(lamella.Error, match=r"stage 0's result has shape \(6, 4\)"):
            pipeline.run()
