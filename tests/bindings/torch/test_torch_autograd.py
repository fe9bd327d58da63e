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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lamella.torch  # noqa: F401
from lamella.torch import autograd, calls, edges, into

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
    assert autograd.HAS_KEYS and calls.HAS_KEYS


def asks_autograd(function):
    """Whether a call of Lamella's kernel for the Autograd key is in it."""
    seen, kernels = set(), (autograd.__file__, into.__file__)
    sys.setprofile(lambda frame, event, arg: seen.add(frame.f_code.co_filename))
    try:
        function()
    finally:
        sys.setprofile(None)
    return bool(seen & set(kernels))


def test_without_gradients_an_ordinary_call_passes_autograd_by():
    x, w = pair()
    one_of = {
        "the packet": lambda: ops.linear(x, w),
        "the overload": lambda: ops.linear.default(x, w, act="gelu"),
        "a parameter": lambda: ops.linear(x, torch.nn.Parameter(w)),
        "out": lambda: ops.all_reduce.out(x, y=torch.empty(3, 4)),
    }
    assert [name for name, function in one_of.items() if not asks_autograd(function)] == []
    with torch.no_grad():
        assert [name for name, function in one_of.items() if asks_autograd(function)] == []


@pytest.mark.parametrize("x", [torch.randn(3, 4), torch.randn(3, 5)], ids=["right", "refused"])
def test_autograd_is_asked_again_after_a_call_that_passed_it_by(x):
    w = torch.randn(2, 4, requires_grad=True)
    before = torch._C._dispatch_tls_local_exclude_set()
    with torch.no_grad():
        if x.shape[1] == 5:
            with pytest.raises(lamella.errors.InvalidArgument):
                ops.linear(x, w)
        else:
            assert not ops.linear(x, w)[0].requires_grad
    assert torch._C._dispatch_tls_local_exclude_set() == before
    assert ops.linear(torch.randn(3, 4), w)[0].requires_grad


def test_below_autograd_a_call_leaves_it_excluded():
    x, w = pair()
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        before = torch._C._dispatch_tls_local_exclude_set()
        ops.linear(x, w)
        assert torch._C._dispatch_tls_local_exclude_set() == before


def doubled(x):
    with torch.enable_grad():
        return x * 2


class Differentiates(TorchDispatchMode):
    """Uses autograd while it handles an operator."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        with torch.overrides.enable_reentrant_dispatch():
            self.used = doubled(self.weight).requires_grad
        return function(*args, **(kwargs or {}))


class DifferentiatesEarly(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.used = self.used or doubled(self.weight).requires_grad
        return function(*args, **(kwargs or {}))


class Itself(torch.Tensor):
    """A tensor of somebody's own that uses autograd while it handles an operator."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

    def __init__(self, x):
        self.x = x

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with torch.overrides.enable_reentrant_dispatch():
            cls.used = doubled(cls.weight).requires_grad
        return function(*(a.x if isinstance(a, cls) else a for a in args), **(kwargs or {}))


@pytest.mark.parametrize("kind", [Differentiates, DifferentiatesEarly])
def test_a_mode_may_use_autograd_while_a_call_without_gradients_is_made(kind):
    x, w = pair()
    mode = kind()
    mode.weight, mode.used = torch.ones(2, requires_grad=True), False
    with torch.no_grad(), mode:
        ops.linear(x, w)
    assert mode.used


def test_a_tensor_of_somebodys_own_may_use_autograd_too():
    x, w = pair()
    Itself.weight, Itself.used = torch.ones(2, requires_grad=True), False
    with torch.no_grad():
        y, _ = ops.linear(Itself(x), w=w)
        assert Itself.used
        Itself.used = False
        ops.linear(x, w=Itself(w))
    assert Itself.used
    torch.testing.assert_close(y, x @ w.t())


def test_under_a_transform_a_call_goes_as_torch_sends_it():
    def loss(x):
        with torch.no_grad():
            assert asks_autograd(lambda: ops.all_reduce(x))
            scale = ops.all_reduce(x)
        return (scale * x).sum()

    x = torch.randn(3)
    assert torch.equal(torch.func.grad(loss)(x), x)


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
        calls.own(one, True)
    assert type(packet) is Fixed and type(plain) is types.SimpleNamespace


def test_without_tensors_without_data_edges_are_asked_for(monkeypatch):
    monkeypatch.setattr(edges, "FakeTensorMode", None)
    with pytest.raises(lamella.Error, match="edges="):
        edges.run_fake(0, torch.nn.Linear(2, 2), None, lambda: [torch.ones(4, 2)])
