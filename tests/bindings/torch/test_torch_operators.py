"""Every operator in torch, alone: schema, fake, gradient, torch.compile, mistakes.

Lamella's kernels have no double precision, so gradients are checked by torch's gradcheck in f32
(steps of 0.02, tolerance 0.02, on values near 1), and, closer, against torch's own in f64.
"""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import lamella.torch  # noqa: F401
from lamella import rows
from lamella.torch.gradients import BACKWARD

import torch_samples
from torch_samples import SAMPLES, all_samples

ALL = list(all_samples())
IDS = [id for id, _, _ in ALL]
DIFFERENTIABLE = [sample for sample in ALL if sample[1] in BACKWARD]
ops = torch.ops.lamella


@pytest.fixture(autouse=True)
def seeded(request):
    seed = torch.initial_seed() % 2**31
    print("seed", seed)
    torch.manual_seed(seed)


def each(samples):
    return pytest.mark.parametrize(
        "name, sample", [(name, make) for _, name, make in samples], ids=[s[0] for s in samples]
    )


def operator(name):
    return getattr(ops, name).default


def is_tracked(argument):
    return isinstance(argument, torch.Tensor) and argument.is_floating_point()


def leaves(arguments):
    return [a for a in arguments if is_tracked(a)]


def track(arguments):
    for tensor in leaves(arguments):
        tensor.requires_grad_()
    return arguments


def first(result):
    return result[0] if isinstance(result, tuple) else result


def test_every_row_has_a_sample():
    assert set(SAMPLES) == set(rows.table())


@each(ALL)
def test_opcheck(name, sample):
    arguments, keywords = sample()
    torch.library.opcheck(operator(name), tuple(arguments), keywords)
    if name in BACKWARD:
        torch.library.opcheck(operator(name), tuple(track(arguments)), keywords)


@each(ALL)
def test_the_fake_has_the_shape_of_the_result(name, sample):
    arguments, keywords = sample()
    real = operator(name)(*arguments, **keywords)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    fake = operator(name)(*meta, **keywords)
    for r, f in zip(*[t if isinstance(t, tuple) else (t,) for t in (real, fake)], strict=True):
        assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


def is_smooth(sample):
    """A kink has no difference quotient; the comparison with torch covers it."""
    return sample()[1].get("act") not in ("relu", "relu2")


@each([s for s in DIFFERENTIABLE if is_smooth(s[2])])
def test_gradcheck_in_f32(name, sample):
    arguments, keywords = sample()
    tracked = leaves(track(arguments))

    def call(*tensors):
        given = iter(tensors)
        changed = [next(given) if is_tracked(a) else a for a in arguments]
        return first(operator(name)(*changed, **keywords))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradcheck would rather have double
        assert torch.autograd.gradcheck(
            call, tracked, eps=2e-2, atol=2e-2, rtol=2e-2, check_undefined_grad=False
        )


ACTS = {
    "": lambda x: x,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
}


def torch_linear(x, w, b=None, act="", **rest):
    return ACTS[act](torch.nn.functional.linear(x, w, b))


def torch_ffn(x, w1, b1, w2, b2, act="", gated=0, **rest):
    z = torch.nn.functional.linear(x, w1, b1)
    gate, up = z.chunk(2, -1) if gated else (z, None)
    h = ACTS[act](gate) * up if gated else ACTS[act](z)
    return torch.nn.functional.linear(h, w2, b2)


def torch_same(x, **rest):
    return x


def torch_embedding(ids, w, **rest):
    return torch.nn.functional.embedding(ids, w)


def torch_cross_entropy(logits, targets, **rest):
    rows = logits.reshape(-1, logits.shape[-1])
    losses = torch.nn.functional.cross_entropy(rows, targets.reshape(-1), reduction="none")
    return losses.reshape(targets.shape)


def torch_rmsnorm(x, g, eps=0, **rest):
    return torch.nn.functional.rms_norm(x, g.shape, g, eps)


def torch_sum_and_norm(x, res, g, eps=0, **rest):
    return torch_rmsnorm(x + res, g, eps), x + res


REFERENCES = {
    "linear": torch_linear,
    "linear_col": torch_linear,
    "linear_row": torch_linear,
    "ffn": torch_ffn,
    "embedding_vocab": torch_embedding,
    "cross_entropy_vocab": torch_cross_entropy,
    "rmsnorm": torch_rmsnorm,
    "all_reduce_add_rmsnorm": torch_sum_and_norm,
}


def reference(name):
    return REFERENCES.get(name, torch_same)


def run_both(name, arguments, keywords, function=None):
    """Result and gradients of Lamella in f32, then of torch in f64."""
    found = []
    for call, dtype in ((function or operator(name), None), (reference(name), torch.float64)):
        mine = [a.detach().to(dtype or a.dtype) if is_tracked(a) else a for a in arguments]
        y = first(call(*track(mine), **keywords))
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
        found.append([y.detach(), *[t.grad for t in leaves(mine)]])
    return found


def check_close(ours, theirs):
    """A sum of n <= 64 products in f32, in any order, is within n * 2^-24 of its terms' sizes,
    which stay below 64 here; an activation's slope, below 8 here, multiplies that."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=64 * 64 * 2.0**-24)


@each(DIFFERENTIABLE)
def test_numbers_and_gradients_are_those_of_torch(name, sample):
    check_close(*run_both(name, *sample()))


@each([s for s in DIFFERENTIABLE if s[0].endswith("-0")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_numbers_are_the_same(name, sample, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(operator(name), fullgraph=True, dynamic=dynamic)
    check_close(*run_both(name, *sample(), function=compiled))


def of_length(name, tokens, monkeypatch):
    """The sample of a row with so many tokens: the same but for those."""
    monkeypatch.setattr(torch_samples, "T", tokens)
    return SAMPLES[name]()


def lengths(a, b):
    """(argument, dimension) wherever two samples' shapes differ."""
    pairs = enumerate(zip(a, b))
    both = [(i, x, y) for i, (x, y) in pairs if isinstance(x, torch.Tensor)]
    return [(i, d) for i, x, y in both for d in range(x.dim()) if x.shape[d] != y.shape[d]]


@pytest.mark.parametrize("name", [name for name in SAMPLES if SAMPLES[name]])
def test_dimensions_that_were_marked_dynamic_compile_once(name, monkeypatch):
    torch._dynamo.reset()
    samples = [of_length(name, tokens, monkeypatch) for tokens in (4, 9, 17)]
    dynamic = lengths(samples[0][0], samples[1][0])
    assert dynamic or name == "pack_weight"
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(operator(name), fullgraph=True, backend=counter)
    for arguments, keywords in samples:
        if name in BACKWARD:
            track(arguments)
        for i, dimension in dynamic:
            torch._dynamo.mark_dynamic(arguments[i], dimension)
        found = results_and_gradients(compiled, arguments, keywords)
        wanted = results_and_gradients(operator(name), arguments, keywords)
        assert all(map(torch.equal, found, wanted))
    assert counter.frame_count == 1


def results_and_gradients(function, arguments, keywords):
    y = first(function(*arguments, **keywords))
    tracked = [t for t in leaves(arguments) if t.requires_grad]
    return [y, *(torch.autograd.grad(y.square().sum(), tracked) if tracked else ())]


SYMBOLS = {
    "seq": lambda x, w: (ops.linear_row(x, w, seq=x.shape[0]), torch_linear(x, w)),
    "total": lambda x, w: (ops.all_gather(x, total=x.shape[0]), x),
    "rows": lambda x, w: (ops.gather_sequence(x, total=x.shape[0]), x),
}


@pytest.mark.parametrize("name", SYMBOLS)
def test_a_length_that_an_attribute_says_may_be_a_symbol(name):
    torch._dynamo.reset()
    w = torch.randn(3, 7)
    compiled = torch.compile(lambda x: SYMBOLS[name](x, w), fullgraph=True, dynamic=True)
    for tokens in (4, 9, 17):
        found, wanted = compiled(torch.randn(tokens, 7))
        check_close([found], [wanted.double()])


def views(t):
    """The same numbers in other memory layouts."""
    wide = torch.zeros(*t.shape[:-1], t.shape[-1] + 3, dtype=t.dtype)
    wide[..., 2:-1] = t
    yield wide[..., 2:-1]
    yield t.transpose(0, -1).contiguous().transpose(0, -1)
    yield t[:1].expand_as(t)
    yield t.flip(0).contiguous().flip(0)


@pytest.mark.parametrize("name", ["linear", "linear_col", "linear_row", "linear_wgrad", "ffn"])
def test_strided_and_expanded_tensors_are_read_right(name):
    arguments, keywords = SAMPLES[name]()
    for i, argument in enumerate(arguments):
        for view in views(argument):
            changed = [*arguments[:i], view, *arguments[i + 1 :]]
            plain = [a.clone(memory_format=torch.contiguous_format) for a in changed]
            ours, theirs = operator(name)(*changed, **keywords), operator(name)(*plain, **keywords)
            check_close([first(ours)], [first(theirs).double()])


def test_gradients_that_repeat_an_element_are_read_right():
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    first(ops.linear(x, w)).sum().backward()
    check_close([w.grad], [x.detach().double().sum(0).expand(3, 7)])


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xb"])
def test_only_the_gradients_that_are_asked_for_are_computed(wanted):
    tensors = dict(x=torch.randn(5, 7), w=torch.randn(3, 7), b=torch.randn(3))
    for name in wanted:
        tensors[name].requires_grad_()
    y = first(ops.linear(*tensors.values()))
    with torch.profiler.profile() as profile:
        y.sum().backward()
    called = {e.key for e in profile.key_averages() if e.key.startswith("lamella::")}
    rows_of = {"x": "linear_dgrad", "w": "linear_wgrad", "b": "linear_wgrad"}
    assert called == {"lamella::" + rows_of[name] for name in wanted}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, w: ops.linear(x, w.double()), "linear: w: found f64, expected f32 as x"),
        (lambda x, w: ops.linear(x, w[:, :-1]), "x's last dimension is 7, expected 6"),
        (lambda x, w: ops.linear(x, w, act="tanh"), "found 'tanh', expected one of"),
        (lambda x, w: ops.linear(x, w, None, torch.ones(1)), "sx: found a scale"),
        (lambda x, w: ops.all_reduce(x, group=99), "group"),
        (lambda x, w: ops.linear(x.to(torch.complex64), w), "dtype is not supported"),
        (lambda x, w: ops.recv_activation(torch.zeros(1), shape=[1] * 9), "found 9 dimensions"),
    ],
)
def test_mistakes_are_torchs_errors_with_our_words(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(5, 7), torch.randn(3, 7))


def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4


def calls_that_work():
    x, w, b = torch.randn(4, 8), torch.randn(8, 8), torch.randn(8)
    ops.linear(x, w, b, act="gelu", save=1)  # an optional, a string
    ops.linear(x[:1].expand(4, 8), w, b)  # a copy


def calls_that_fail():
    for call in (
        lambda: ops.linear(torch.randn(4, 8), torch.randn(8, 9), torch.randn(8), act="gelu"),
        lambda: ops.recv_activation(torch.zeros(1), shape=[3, 4, 5]),  # a list
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("calls", [calls_that_work, calls_that_fail])
def test_calls_leak_nothing(calls):
    for _ in range(300):
        calls()
    before = resident_kib()
    for _ in range(60000):  # the smallest thing that could be lost is 32 bytes: 1875 KiB
        calls()
    assert resident_kib() - before < 1200


@pytest.mark.parametrize("bias_dtype", [torch.bfloat16, torch.float32])
def test_bf16_with_its_gradients(bias_dtype):
    """Each result is rounded once from an f32 sum: 2^-8 of it; gelu adds one rounding of its
    pre-activation in the backward, whose sums have at most 15 terms near 1."""
    x, w = [torch.randn(*s, dtype=torch.bfloat16, requires_grad=True) for s in ((5, 7), (3, 7))]
    b = torch.randn(3, dtype=bias_dtype, requires_grad=True)
    whole = [t.detach().double().requires_grad_() for t in (x, w, b)]
    y, exact = first(ops.linear(x, w, b, act="gelu", save=1)), torch_linear(*whole, act="gelu")
    y.sum().backward()
    exact.sum().backward()
    assert [t.grad.dtype for t in (x, w, b)] == [torch.bfloat16, torch.bfloat16, bias_dtype]
    for ours, theirs in zip((y, x.grad, w.grad, b.grad), (exact, *[t.grad for t in whole])):
        torch.testing.assert_close(ours.double(), theirs, rtol=4 * 2.0**-8, atol=15 * 2.0**-8)


def test_a_module_elsewhere_than_on_the_cpu_keeps_its_weights_plain():
    """As on CUDA: one program packs for either."""
    from lamella.torch import ColumnParallelLinear, pack

    layer = pack(ColumnParallelLinear(64, 48, device="meta"))
    x = torch.empty(32, 64, device="meta")
    with torch.no_grad():
        assert layer(x).shape == (32, 48) and not layer.packing.copies
    layer = pack(ColumnParallelLinear(64, 48))
    with torch.no_grad():
        assert layer(torch.ones(32, 64)).shape == (32, 48) and list(layer.packing.copies) == ["weight"]
