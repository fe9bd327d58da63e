"""Communication in compiled graphs; the ranks' part of it is in torch_ranks.py (order)."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

import lamella.torch  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]
ops = torch.ops.lamella


def calls(graph):
    """Lamella's operators in a graph, in order."""
    found = []
    for node in graph.graph.nodes:
        for target in (node.target, *node.args[1:2]):
            if isinstance(target, torch._ops.OpOverload) and target.namespace == "lamella":
                found.append(target._opname)
    return found


@pytest.fixture
def traced():
    """A backend that notes the graphs it gets, forward and backward, and those graphs' calls."""
    seen = []

    def note(graph, inputs):
        seen.append(calls(graph))
        return graph

    return aot_autograd(fw_compiler=note), seen


def test_nothing_is_dropped_merged_or_moved(traced):
    backend, seen = traced

    def busy(x):
        ops.all_reduce(x)  # unused
        a, b = ops.all_reduce(x), ops.all_reduce(x)  # equal
        ops.broadcast(x * 2)
        c = ops.reduce_from_group(x)
        return (a * b * c).sum()

    torch._dynamo.reset()
    x = torch.randn(3, 4, requires_grad=True)
    torch.compile(busy, fullgraph=True, backend=backend)(x).backward()
    assert seen[0] == ["all_reduce"] * 3 + ["broadcast", "reduce_from_group"]
    assert sorted(seen[1]) == ["all_reduce", "all_reduce", "copy_to_group"]


def test_what_does_not_communicate_may_be_dropped(traced):
    backend, seen = traced

    def idle(x, w):
        ops.linear(x, w)
        return ops.linear(x, w)[0]

    torch._dynamo.reset()
    torch.compile(idle, fullgraph=True, backend=backend)(torch.randn(5, 7), torch.randn(3, 7))
    assert seen == [["linear"]]


def test_without_effect_tokens_communication_stays_out_of_graphs(warm_python):
    code = """
import sys
sys.path.insert(0, %r)
import torch
import torch._higher_order_ops.effects as effects
del effects._register_effectful_op
import lamella.torch
x = torch.ones(2)
for call in (torch.ops.lamella.all_reduce, torch.ops.lamella.all_reduce.default):
    torch._dynamo.reset()
    assert torch.compile(lambda x: call(x) * 2, backend="eager")(x).tolist() == [2, 2]
    torch._dynamo.reset()
    try:
        torch.compile(lambda x: call(x) * 2, backend="eager", fullgraph=True)(x)
    except torch._dynamo.exc.Unsupported:
        print("refused")
"""
    done = subprocess.run(
        [warm_python, "-c", code % str(ROOT / "bindings/python")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "refused\n" * 2, done.stderr
