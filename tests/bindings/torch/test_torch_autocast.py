"""Layers under torch.autocast, beside torch's own under the same."""

import pytest
import torch

import lamella.torch

ops = torch.ops.lamella
F = torch.nn.functional


@pytest.fixture(autouse=True)
def seeded():
    seed = torch.initial_seed() % 2**31
    print("seed", seed)
    torch.manual_seed(seed)


def leaves(*shapes):
    return [torch.randn(*shape).requires_grad_() for shape in shapes]


def torchs_linear(x, w, b):
    return F.linear(x, w, b)


def torchs_ffn(x, w, b, w2, b2):
    return F.linear(F.silu(F.linear(x, w, b)), w2, b2)


LAYERS = {
    "linear": (lambda *t: ops.linear(*t)[0], torchs_linear),
    "linear_col": (lambda *t: ops.linear_col(*t)[0], torchs_linear),
    "linear_row": (lambda *t: ops.linear_row(*t), torchs_linear),
    "ffn": (lambda *t: ops.ffn(*t, act="silu")[0], torchs_ffn),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients_are_those_of_torchs_layers(name, compiled):
    ours, theirs = LAYERS[name]
    shapes = [(5, 32), (48, 32), (48,)] + ([(16, 48), (16,)] if name == "ffn" else [])
    tensors = leaves(*shapes)
    same = [t.detach().clone().requires_grad_() for t in tensors]
    ours = torch.compile(ours, fullgraph=True) if compiled else ours
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(*tensors), theirs(*same)
    assert y.dtype is expected.dtype is torch.bfloat16
    y.float().square().sum().backward()
    expected.float().square().sum().backward()
    # one rounding to bf16 more or less on each side of a product: 2^-8 of the largest term
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())
    for a, b in zip(tensors, same):
        assert a.grad.dtype is torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=2**-5, atol=2**-5 * b.grad.abs().max().item())


def test_modules_work_under_it():
    ffn = lamella.torch.ParallelFFN(16, 40, "gelu")
    with torch.autocast("cpu", torch.bfloat16):
        y = ffn(torch.randn(3, 16))
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert ffn.w1.grad.dtype is torch.float32


def test_float64_stays_and_is_refused_as_ever():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="found f64"):
        ops.linear(torch.randn(2, 3).double(), torch.randn(4, 3).double())


def test_what_is_no_layer_keeps_its_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.all_reduce(torch.randn(3)).dtype is torch.float32


def test_outside_of_it_nothing_is_cast():
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert ops.linear(x, w)[0].dtype is torch.float32
