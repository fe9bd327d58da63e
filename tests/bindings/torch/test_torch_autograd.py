"""The kernel that stands for operators under torch's Autograd key: who goes straight to the device,
who does not, and what a gradient that nobody asked for does."""

import copy
import gc
import pickle
import subprocess
import sys
import types
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lamella.torch  # noqa: F401
from lamella.torch import autograd, edges, raises

ROOT = Path(__file__).resolve().parents[3]
ops = torch.ops.lamella


def pair():
    return torch.randn(3, 4), torch.randn(2, 4)


class Seen(TorchDispatchMode):
    """Notes the operators that pass."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
def test_a_dispatch_mode_sees_every_call(grad):
    x, w = pair()
    x.requires_grad_(grad)
    with Seen() as seen:
        y, _ = ops.linear(x, w)
    assert "lamella.linear.default" in seen.names and y.requires_grad == grad


def test_a_view_that_is_negated_on_reading_is_read_as_negated():
    x, w = pair()
    for other in (x._neg_view(), x._neg_view().requires_grad_()):
        torch.testing.assert_close(ops.linear(other, w)[0], -(x @ w.t()))


def test_what_has_no_gradient_says_so():
    dy, w = torch.randn(3, 2, requires_grad=True), torch.randn(2, 4)
    dx = ops.linear_dgrad(dy, w)
    assert not dx.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        dx.sum().backward()


def test_a_gradient_of_a_gradient_is_refused_or_right():
    x, w = pair()
    x.requires_grad_()
    y, _ = ops.linear(x, w)
    with pytest.raises(lamella.Error, match="linear: .*create_graph"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.autograd.grad(ops.linear(x, w)[0].sum(), x)
    (dx,) = torch.autograd.grad((ops.all_reduce(x) ** 2).sum(), x, create_graph=True)
    (of_dx,) = torch.autograd.grad(dx.sum(), x)
    assert torch.equal(of_dx, torch.full_like(x, 2))


def test_a_weight_that_accumulates_is_freed_copied_and_saved():
    split = lamella.torch.ColumnParallelLinear(4, 3)
    lamella.torch.accumulate_grads(split)
    loaded = pickle.loads(pickle.dumps(split))
    assert torch.equal(loaded.weight, split.weight)
    for other in (copy.deepcopy(split), loaded):
        lamella.torch.accumulate_grads(other)
        other(torch.ones(2, 4)).sum().backward()
        assert other.weight.grad is None
        assert torch.equal(other.weight.main_grad, torch.full((3, 4), 2.0))
    assert not split.weight.main_grad.any()
    alive = weakref.ref(split.weight)
    gc.disable()
    try:
        del split
        assert alive() is None
    finally:
        gc.enable()


class Undefined(torch.autograd.Function):
    """Passes a tensor on, and no gradient back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return None


@pytest.mark.parametrize("name", ["linear", "linear_col"])
def test_a_gradient_that_never_comes_is_none_or_zeros(name):
    """Zeros where other ranks wait for this one's part."""
    x, w = pair()
    x.requires_grad_()
    y = getattr(ops, name)(x, w, act="gelu", save=1)[0]
    Undefined.apply(y).sum().backward()
    assert x.grad is None if name == "linear" else torch.equal(x.grad, torch.zeros_like(x))


def test_only_what_is_asked_for_is_computed():
    x, w = pair()
    w.requires_grad_()
    y, _ = ops.linear(x, w)
    with Seen() as seen:
        y.sum().backward()
    names = [name for name in seen.names if name.startswith("lamella")]
    assert names == ["lamella.linear_wgrad.default"]


def test_a_backward_for_some_inputs_computes_their_gradients_only():
    x, w = pair()
    y, _ = ops.linear(x.requires_grad_(), w.requires_grad_())
    for asked, row in ((x, "linear_dgrad"), (w, "linear_wgrad")):
        with Seen() as seen:
            torch.autograd.backward(y, torch.ones_like(y), inputs=[asked], retain_graph=True)
        names = [name for name in seen.names if name.startswith("lamella")]
        assert names == ["lamella.%s.default" % row]


def test_attributes_left_out_have_their_defaults_in_the_backward():
    logits, targets = torch.randn(3, 9, requires_grad=True), torch.tensor([1, -100, 8])
    loss, _ = ops.cross_entropy_vocab(logits, targets)  # ignore is -100 by default
    loss.sum().backward()
    assert not logits.grad[1].any() and logits.grad[0].any()


def test_without_torchs_private_keys_its_own_registration_does_the_same(warm_python):
    done = subprocess.run(
        [
            warm_python,
            "-c",
            "import sys; sys.path.insert(0, %r)\n"
            "import torch\n"
            "register, calls = torch.library.register_autograd, []\n"
            "def count(*a, **k): calls.append(a[0]), register(*a, **k)\n"
            "torch.library.register_autograd = count\n"
            "hidden = torch._C._any_requires_grad\n"
            "del torch._C._any_requires_grad\n"
            "import lamella.torch\n"
            "torch._C._any_requires_grad = hidden\n"
            "assert torch.ops.lamella.linear.default in calls\n"
            "x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)\n"
            "y, aux = torch.ops.lamella.linear(x, w, act='relu', save=1)\n"
            "y.sum().backward()\n"
            "z = x.detach().clone().requires_grad_()\n"
            "torch.relu(z @ w.t()).sum().backward()\n"
            "torch.testing.assert_close(x.grad, z.grad)\n"
            "assert not aux.requires_grad" % str(ROOT / "bindings/python"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_this_torch_has_the_private_keys():
    assert autograd.HAS_KEYS


def test_a_torch_whose_objects_are_other_ones_is_left_as_it_is():
    class Fixed:
        __slots__ = ("_op", "default")

        def __setattr__(self, name, value):
            if name == "__class__":
                raise TypeError("as an object of C would")
            super().__setattr__(name, value)

    packet, plain = Fixed(), types.SimpleNamespace(default=None)
    packet._op = packet.default = print
    for one in (packet, plain):
        raises.own_errors(one)
    assert type(packet) is Fixed and type(plain) is types.SimpleNamespace


def test_without_tensors_without_data_edges_are_asked_for(monkeypatch):
    monkeypatch.setattr(edges, "FakeTensorMode", None)
    with pytest.raises(lamella.Error, match="edges="):
        edges.run_fake(0, torch.nn.Linear(2, 2), None, lambda: [torch.ones(4, 2)])
