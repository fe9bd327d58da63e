"""Operators in JAX on one rank: numbers and gradients beside jax.numpy's, and what is refused."""

import ctypes
import inspect
import os
import re

import jax
import jax.numpy as jnp
import lamella
import lamella.jax as lj
import numpy as np
import pytest
from lamella import library, operators
from lamella.jax import call, grads, native, rows

SEED = int(os.environ.get("LAMELLA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
ACTS = {
    "": lambda x: x,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
}


@pytest.fixture
def draw():
    print("LAMELLA_TEST_SEED=%d" % SEED)
    chance = np.random.default_rng(SEED)

    def array(*shape, dtype=jnp.float32):
        return jnp.asarray(chance.standard_normal(shape), dtype)

    return array


def close(got, want, bits=18):
    jax.tree.map(lambda g, w: close_array(np.asarray(g, "d"), np.asarray(w, "d"), bits), got, want)


def close_array(got, want, bits):
    assert got.shape == want.shape
    worst = np.max(np.abs(got - want), initial=0)
    assert worst <= 2.0**-bits * (1 + np.max(np.abs(want), initial=0)), worst


def gradients(f, *arrays):
    """Of all arrays, under jit."""
    return jax.jit(jax.grad(lambda *a: jnp.sum(f(*a) ** 2), tuple(range(len(arrays)))))(*arrays)


# -- linear --


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_linear_and_its_gradients_are_those_of_jax(draw, act, lead):
    x, w, b = draw(*lead, 7), draw(7, 4), draw(4)
    if not lead:
        x = x[None]  # a row's x has at least one leading dimension

    def ours(x, w, b):
        return lj.linear(x, w, b, act=act)

    def theirs(x, w, b):
        return ACTS[act](x @ w + b)

    close(jax.jit(ours)(x, w, b), theirs(x, w, b))
    close(gradients(ours, x, w, b), gradients(theirs, x, w, b))


def test_linear_in_bfloat16_rounds_once_and_keeps_float32_biases(draw):
    x, w, b = draw(6, 16, dtype=jnp.bfloat16), draw(16, 8, dtype=jnp.bfloat16), draw(8)
    y = jax.jit(lj.linear)(x, w, b)
    want = np.asarray(x, "d") @ np.asarray(w, "d") + np.asarray(b, "d")
    assert y.dtype == jnp.bfloat16
    close(y, want, bits=8)
    dx, dw, db = gradients(lj.linear, x, w, b)
    assert (dx.dtype, dw.dtype, db.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    wide = lj.linear(x, w, b, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    close(wide, want, bits=16)


def test_f32_products_may_be_tf32_where_jaxs_precision_says_so(draw):
    x, w = draw(5, 7), draw(7, 3)

    def flags():
        text = str(jax.make_jaxpr(jax.grad(lambda x, w: lj.linear(x, w).sum(), (0, 1)))(x, w))
        return re.findall(r"'flags', (?:np\.int64\()?(\d+)", text)

    assert not flags()
    for precision, allows in ("tensorfloat32", 1), ("bfloat16", 1), ("highest", 0), ("float32", 0):
        with jax.default_matmul_precision(precision):
            assert flags() == ["1"] * 3 * allows, precision  # forward, and a gradient for each
            close(lj.linear(x, w), jnp.asarray(np.asarray(x) @ np.asarray(w)))


def test_a_saved_pre_activation_comes_out_and_carries_no_gradient(draw):
    x, w = draw(3, 5), draw(5, 4)
    y, aux = lj.linear(x, w, act="relu", save=1)
    close(aux, x @ w)
    close(y, jax.nn.relu(x @ w))
    dx = jax.grad(lambda x: lj.linear(x, w, act="relu", save=1)[1].sum())(x)
    assert not dx.any()


def test_only_the_gradient_that_is_asked_for_is_computed(draw):
    x, w, b = draw(3, 5), draw(5, 4), draw(4)

    def rows_of(argument):
        f = jax.grad(lambda *a: lj.linear(*a).sum(), argument)
        text = str(jax.make_jaxpr(f)(x, w, b))
        return {name for name in rows.table() if "lamella_%s\n" % name in text.replace(" ", "\n")}

    assert rows_of(0) == {"linear", "linear_dgrad"}
    assert rows_of(1) == {"linear", "linear_wgrad"}


def test_no_tensor_is_copied_or_transposed_on_its_way(draw):
    f = jax.jit(jax.grad(lambda x, w: lj.linear(x, w, act="relu").sum(), (0, 1)))
    text = f.lower(draw(6, 8), draw(8, 4)).compile().as_text()
    operations = re.findall(r"[})\]] ([\w-]+)\(", text)
    assert operations.count("custom-call") == 4
    assert not {"copy", "transpose", "copy-start"} & set(operations)


# -- ffn --


@pytest.mark.parametrize("gated", [0, 1])
def test_ffn_and_its_gradients_are_those_of_jax(draw, gated):
    x, w1, b1, w2, b2 = draw(2, 3, 6), draw(6, 10), draw(10), draw(10 >> gated, 6), draw(6)

    def ours(x, w1, b1, w2, b2):
        return lj.ffn(x, w1, b1, w2, b2, act="silu", gated=gated)

    def theirs(x, w1, b1, w2, b2):
        h = x @ w1 + b1
        gate, up = jnp.split(h, 2, -1) if gated else (h, 1)
        return (jax.nn.silu(gate) * up) @ w2 + b2

    close(jax.jit(ours)(x, w1, b1, w2, b2), theirs(x, w1, b1, w2, b2))
    close(gradients(ours, x, w1, b1, w2, b2), gradients(theirs, x, w1, b1, w2, b2))


def test_ffn_without_biases_differentiates_for_one_argument(draw):
    x, w1, w2 = draw(3, 6), draw(6, 8), draw(8, 6)

    def ours(x, w1, w2):
        return lj.ffn(x, w1, None, w2, act="relu").sum()

    def theirs(x, w1, w2):
        return (jax.nn.relu(x @ w1) @ w2).sum()

    for argument in range(3):
        found = jax.grad(ours, argument)(x, w1, w2)
        close(found, jax.grad(theirs, argument)(x, w1, w2))


class Values(ctypes.Structure):  # XLA_FFI_Args, XLA_FFI_Rets
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("values", ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p * 6))),
    ]

    def pointers(self):
        """The data of each buffer {size, extension, dtype, data, rank, dims}."""
        return [self.values[i].contents[3] for i in range(self.size)]


class Frame(ctypes.Structure):  # XLA_FFI_CallFrame, up to its attributes
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("api", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int32),
        ("args", Values),
        ("rets", Values),
    ]


HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Frame))
EXECUTE = 3


@pytest.fixture(scope="module")
def watched():
    """Handlers that note what memory they are handed, before Lamella's own: {row: [pointers]}."""
    seen, kept = {}, []

    def watch(name):
        own = getattr(native.adapter(), "lam_xla_" + name)
        own.restype, own.argtypes = ctypes.c_void_p, [ctypes.POINTER(Frame)]

        def handler(frame):
            if not frame.contents.extension and frame.contents.stage == EXECUTE:
                seen[name] = frame.contents.args.pointers(), frame.contents.rets.pointers()
            return own(frame)

        kept.append(HANDLER(handler))
        address = ctypes.cast(kept[-1], ctypes.c_void_p)
        jax.ffi.register_ffi_target("watched_" + name, jax.ffi.pycapsule(address), platform="cpu")

    for name in ("linear", "ffn", "all_reduce", "linear_wgrad"):
        watch(name)
    yield seen
    jax.clear_caches()  # what is compiled for these handlers goes with them


def where(*arrays):
    return [x.unsafe_buffer_pointer() for x in arrays]


def test_the_library_reads_and_writes_jaxs_own_memory(draw, watched, monkeypatch):
    monkeypatch.setattr(call, "PREFIX", "watched_")
    x, w, b, v = draw(6, 8), draw(8, 12), draw(12), draw(12, 8)
    y = jax.jit(lambda *a: lj.linear(*a))(x, w, b)
    assert watched["linear"][0][:3] == where(x, w, b)
    assert watched["linear"][1][0] == y.unsafe_buffer_pointer()
    y = jax.jit(lambda x, w, b, v: lj.ffn(x, w, b, v, act="gelu"))(x, w, b, v)
    assert watched["ffn"][0][:4] == where(x, w, b, v)
    assert watched["ffn"][1][0] == y.unsafe_buffer_pointer()
    y = jax.jit(lambda x: lj.all_reduce(x))(x)
    assert (watched["all_reduce"][0][:1], watched["all_reduce"][1][:1]) == (where(x), where(y))
    dw, _ = jax.jit(lambda dy, x: lj.linear_wgrad(dy, x))(draw(6, 12), x)
    assert watched["linear_wgrad"][1][0] == dw.unsafe_buffer_pointer()


# -- as JAX functions --


def test_scan_checkpoint_and_value_and_grad_compose(draw):
    x, ws = draw(4, 6), draw(3, 6, 6)

    def deep(layer):
        def step(x, w):
            return jax.checkpoint(layer)(x, w), None

        return lambda x, ws: (jax.lax.scan(step, x, ws)[0] ** 2).sum()

    ours = deep(lambda x, w: lj.linear(x, w, act="gelu_tanh"))
    theirs = deep(lambda x, w: jax.nn.gelu(x @ w))
    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(x, ws)
    close(found, jax.value_and_grad(theirs, (0, 1))(x, ws), bits=16)


def test_vmap_over_activations_is_one_call(draw):
    xs, w, b = draw(4, 3, 5), draw(5, 2), draw(2)
    f = jax.vmap(lambda x: lj.linear(x, w, b, act="relu"))
    close(jax.jit(f)(xs), jax.nn.relu(xs @ w + b))
    assert str(jax.make_jaxpr(jax.jit(f))(xs)).count("target_name=lamella_linear") == 1


@pytest.mark.parametrize(
    "f, shapes, reason",
    [
        (lambda x, w: lj.linear(x, w), [(2, 3, 5), (2, 5, 4)], "w is shared by all of a batch"),
        (lambda dy, x: lj.linear_wgrad(dy, x)[0], [(2, 3, 4), (2, 3, 5)], "dw is shared"),
        (lambda x, w: lj.linear_col(x, w), [(2, 3, 5), (2, 5, 4)], "linear_col: vmap is refused"),
    ],
)
def test_vmap_is_refused_where_it_makes_no_sense(draw, f, shapes, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.jit(jax.vmap(f))(*[draw(*shape) for shape in shapes])


# -- the table --


def compile_call(target):
    """A program that calls it, with nothing: XLA refuses to compile one without a handler."""
    call = jax.ffi.ffi_call(target, (), has_side_effect=True)
    jax.jit(lambda: call()).lower().compile()


def test_every_row_is_a_function_with_words_and_a_target():
    with pytest.raises(jax.errors.JaxRuntimeError, match="No FFI handler"):
        compile_call("lamella_nosuch")
    for name, row in rows.table().items():
        compile_call("lamella_" + name)
        function = getattr(lj, name)
        assert function.__doc__ and name in lj.__all__
        names = list(inspect.signature(function).parameters)
        assert names[: len(row.inputs)] or rows.own_token(row)
        assert "acc" not in names and ("token" in names) == row.communicates


def test_every_row_with_a_backward_of_its_own_is_in_the_table_of_gradients():
    table = rows.table()
    backwards = ("_dgrad", "_wgrad", "_bwd")
    bases = {name[: -len(end)] for name in table for end in backwards if name.endswith(end)}
    assert bases & set(table) <= set(grads.GRADS)
    known = set(grads.GRADS) & set(table)
    others = {"pack_weight", "codec_pack", "codec_unpack"}
    assert {n for n in table if not n.endswith(backwards)} - known - others == set()


def test_packed_weights_pass_through(draw):
    cols = library.packed_cols(native.dtype_number("float32"), 8, 16)
    x, w = draw(3, 16), draw(16, 8)
    packed = jax.jit(lambda w: lj.pack_weight(w, cols=cols))(w)
    assert packed.dtype == jnp.uint8 and packed.shape == (8, cols)
    close(jax.jit(lj.linear)(x, packed), x @ w)


def test_a_packed_weight_is_as_wide_as_this_machine_wants_it(draw):
    x, w, dy = draw(3, 16), draw(16, 8), draw(3, 8)
    f32 = native.dtype_number("float32")
    forward, back = jax.jit(lj.pack_weight)(w), jax.jit(lambda w: lj.pack_weight(w, side=1))(w)
    assert forward.shape == (8, library.packed_cols(f32, 8, 16))
    assert back.shape == (16, library.packed_cols(f32, 8, 16, 1))
    close(lj.linear(x, forward), x @ w)
    close(lj.linear_dgrad(dy, back), dy @ w.T)


@pytest.mark.parametrize("codec", [1, 4])
def test_what_a_codec_packs_it_unpacks(draw, codec):
    """As bf16 rounds, or int8 with a scale for each 128 (lamella.h's LAM_CODEC_...)."""

    @jax.jit
    def there_and_back(x):
        coded = lj.codec_pack(x, codec=codec)
        return coded, lj.codec_unpack(coded, codec=codec, cols=130, dtype=jnp.float32)

    x = draw(5, 130)
    coded, y = there_and_back(x)
    assert (coded.dtype, coded.shape) == (jnp.uint8, (5, {1: 2 * 130, 4: 130 + 2 * 4}[codec]))
    if codec == 1:
        close_array(np.asarray(y), np.asarray(x.astype(jnp.bfloat16), "f"), bits=60)
    else:
        for tile in (slice(0, 128), slice(128, 130)):
            step = np.abs(x[:, tile]).max(-1, keepdims=True) / 127
            assert (np.abs(y - x)[:, tile] <= 0.51 * step).all()


def test_a_program_for_cuda_calls_the_same_target(draw):
    """Compiled only: there is no CUDA here. The handlers' own logic is frame_test's."""
    traced = jax.jit(lj.linear).trace(draw(3, 5), draw(5, 4))
    assert "custom_call @lamella_linear(" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_calls_without_jax_are_as_they_were():
    """Functions of the library are the whole process's: no host redefines them."""
    x, w = np.ones((2, 3), "f"), np.ones((4, 3), "f")
    f32 = native.dtype_number("float32")
    assert operators.infer("linear", [x, w]) == [((2, 4), f32), None]
    assert library.packed_cols(f32, 4, 3) > 0


# -- refusals --


def test_what_no_shape_rule_fits_is_refused_while_tracing(draw):
    with pytest.raises(lamella.Error, match="^linear: w: ") as caught:
        jax.jit(lj.linear)(draw(3, 5), draw(5))
    assert caught.value.status & 0xFF == 3


def test_what_the_operator_refuses_is_an_exception_with_its_line(draw):
    line = "INVALID_ARGUMENT: linear: x's last dimension is 5, expected 4: w's in features"
    with pytest.raises(jax.errors.JaxRuntimeError, match=line):
        jax.jit(lj.linear)(draw(3, 5), draw(4, 2))


@pytest.mark.parametrize(
    "kwargs, error, reason",
    [
        ({"act": "tanh"}, lamella.Error, "act: found 'tanh', expected one of"),
        ({"nosuch": 1}, TypeError, "nosuch"),
        ({"dtype": jnp.complex64}, TypeError, "complex64"),
    ],
)
def test_a_wrong_attribute_is_refused(draw, kwargs, error, reason):
    with pytest.raises(error, match=reason):
        lj.linear(draw(3, 5), draw(5, 2), **kwargs)


def test_a_destroyed_groups_calls_fail_and_say_so(draw):
    group = lamella.Group.create(lamella.Group.new_id(), 0, 1)
    f = jax.jit(lambda x: lj.all_reduce(x, group=group, token=lj.new_token())[0])
    x = draw(3)
    close(f(x), x)
    group.close()
    line = "NOT_FOUND: all_reduce: .*no open group has"
    with pytest.raises(jax.errors.JaxRuntimeError, match=line):
        jax.block_until_ready(f(x))


def test_a_call_of_a_group_without_a_token_is_refused(draw):
    with pytest.raises(TypeError, match="recv_activation: token: found None"):
        lj.recv_activation(shape=(3,))
