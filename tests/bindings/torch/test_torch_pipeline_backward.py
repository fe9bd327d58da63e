"""A stage's backward in two parts gives what one backward gives, each product computed once."""

import copy

import pytest
import torch
import torch.utils._python_dispatch as dispatch

import lamella.torch
from lamella.torch import backward

F = torch.nn.functional


class Block(torch.nn.Module):
    """A residual block: norm, two layers with biases."""

    def __init__(self, width=6):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 9), torch.nn.Linear(9, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Ours(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = lamella.torch.ColumnParallelLinear(6, 9)
        self.down = lamella.torch.RowParallelLinear(9, 6)
        self.ffn = lamella.torch.ParallelFFN(6, 7, "silu", gated=True)

    def forward(self, x):
        return x + self.ffn(self.down(self.up(x)))


class Twice(torch.nn.Module):
    """One layer used twice, another in between."""

    def __init__(self):
        super().__init__()
        self.shared, self.own = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x):
        return self.shared(F.silu(self.own(F.silu(self.shared(x)))))


class Several(torch.nn.Module):
    """Three outputs: of both, of weights alone, and one without a gradient."""

    def __init__(self):
        super().__init__()
        self.layer, self.row = torch.nn.Linear(6, 6), torch.nn.Parameter(torch.randn(3, 6))
        self.bias = torch.nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.layer(x) + self.bias, self.row * self.bias, x.detach() > 0


class Derived(torch.nn.Module):
    """A weight that is computed from others, and split outputs of one node."""

    def __init__(self):
        super().__init__()
        self.v, self.g = torch.nn.Parameter(torch.randn(6, 6)), torch.nn.Parameter(torch.randn(6))

    def forward(self, x):
        w = F.normalize(self.v) * self.g
        return torch.chunk(F.linear(x, w), 2, -1)


class Frozen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.a.requires_grad_(False)

    def forward(self, x):
        return self.b(F.gelu(self.a(x)))


def run(module, x, split):
    """(gradient of x, of each weight) after two micro-batches."""
    x.grad = None
    for scale in (1.0, 2.0):
        outputs = module(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        used = [y for y in outputs if y.requires_grad]
        edges = [torch.autograd.graph.get_gradient_edge(y) for y in used]
        grads = [scale * torch.linspace(-1, 1, y.numel()).reshape(y.shape) for y in used]
        if split:
            later = backward.inputs_part(edges, grads, [x] if x.requires_grad else [])
            before = [p.grad is None for p in module.parameters()]
            assert all(before) or scale == 2.0, "I adds to weights"
            backward.weights_part(later)
        else:
            backward.whole(edges, grads)
    return x.grad, [p.grad for p in module.parameters()]


@pytest.mark.parametrize("has_input", [True, False])
@pytest.mark.parametrize("kind", [Block, Ours, Twice, Several, Derived, Frozen])
def test_both_parts_give_what_one_backward_gives(kind, has_input):
    print("seed", torch.seed())
    module, x = kind(), torch.randn(3, 6, requires_grad=has_input)
    dx, dws = run(module, x, split=False)
    split_dx, split_dws = run(copy.deepcopy(module), x, split=True)
    for one, other in zip([dx, *dws], [split_dx, *split_dws]):
        assert one is other is None or torch.equal(one, other)


class Products(dispatch.TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


def test_each_product_is_computed_once():
    module, x = Block(), torch.randn(3, 6, requires_grad=True)
    y = module(x)
    edge = [torch.autograd.graph.get_gradient_edge(y)]
    with Products() as first:
        later = backward.inputs_part(edge, [torch.ones_like(y)], [x])
    with Products() as second:
        backward.weights_part(later)
    assert (first.count, second.count) == (2, 2)


def test_a_long_chain_is_no_recursion():
    layer = torch.nn.Linear(2, 2)
    x = torch.randn(1, 2, requires_grad=True)
    y = x
    for _ in range(3000):
        y = y * 1.0
    y = layer(y)
    edge = torch.autograd.graph.get_gradient_edge(y)
    backward.weights_part(backward.inputs_part([edge], [torch.ones(1, 2)], [x]))
    assert torch.equal(layer.bias.grad, torch.ones(2))


class Rows(dispatch.TorchDispatchMode):
    """Notes Lamella's operators below autograd."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lamella":
            self.names.append(function.name().partition("::")[2])
        return function(*args, **(kwargs or {}))


def test_operators_compute_what_their_part_is_for():
    module, x = Ours(), torch.randn(3, 6, requires_grad=True)
    y = module(x)
    edge = [torch.autograd.graph.get_gradient_edge(y)]
    with Rows() as first:
        later = backward.inputs_part(edge, [torch.ones_like(y)], [x])
    with Rows() as second:
        backward.weights_part(later)
    assert first.names and not [name for name in first.names if "wgrad" in name]
    assert second.names and not [n for n in second.names if "dgrad" in n or n.endswith("_bwd")]
