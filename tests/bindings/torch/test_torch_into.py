"""The overload `out`: results written into tensors of the caller."""

import pytest
import torch

import lamella.torch  # noqa: F401
from lamella import errors, rows
from lamella.torch import into

from torch_samples import SAMPLES

ops = torch.ops.lamella
ROWS = [name for name, row in rows.table().items() if not any(o.optional for o in row.outputs)]
ALONE = [name for name in ROWS if SAMPLES[name]]


@pytest.fixture(autouse=True)
def seeded():
    seed = torch.initial_seed() % 2**31
    print("seed", seed)
    torch.manual_seed(seed)


def call(name):
    """The sample's functional call, and its results."""
    args, kwargs = SAMPLES[name]()
    results = getattr(ops, name)(*args, **kwargs)
    return args, kwargs, results if isinstance(results, tuple) else (results,)


def poisoned_like(tensor):
    return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else torch.full_like(tensor, 77)


def test_rows_without_optional_results_have_it_and_no_others():
    having = {name for name in rows.table() if "out" in getattr(ops, name).overloads()}
    assert having == set(ROWS) and {"all_reduce", "recv_activation", "linear_dgrad"} <= having


@pytest.mark.parametrize("name", ALONE)
def test_results_land_in_the_given_tensors(name):
    args, kwargs, expected = call(name)
    given = [poisoned_like(result) for result in expected]
    results = getattr(ops, name).out(*args, **kwargs, **dict(zip(into.names(rows.table()[name]), given)))
    results = results if isinstance(results, tuple) else (results,)
    for result, tensor, value in zip(results, given, expected):
        assert result.data_ptr() == tensor.data_ptr()
        assert torch.equal(tensor, value)


def test_a_result_may_take_its_operands_place():
    x = torch.randn(3, 4)
    expected = x.clone()
    assert ops.all_reduce.out(x, y=x).data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


def test_a_strided_result_is_written_by_its_strides():
    dy, w = torch.randn(5, 3), torch.randn(3, 7)
    wide = torch.zeros(5, 9)
    ops.linear_dgrad.out(dy, w, dx=wide[:, 1:8])
    torch.testing.assert_close(wide[:, 1:8], dy @ w)
    assert not wide[:, 0].any() and not wide[:, 8].any()


@pytest.mark.parametrize(
    "given, words",
    [
        (torch.empty(2, 4), r"y: found \[2, 4\] f32, expected \[3, 4\] f32"),
        (torch.empty(3, 4, dtype=torch.bfloat16), r"y: found \[3, 4\] bf16, expected \[3, 4\] f32"),
        (torch.empty(4).expand(3, 4), "make it contiguous"),
    ],
    ids=["shape", "dtype", "expanded"],
)
def test_a_tensor_that_does_not_fit_is_refused_and_not_written(given, words):
    before = given.clone()
    with pytest.raises(errors.InvalidArgument, match=words):
        ops.all_reduce.out(torch.randn(3, 4), y=given)
    assert torch.equal(given.nan_to_num(), before.nan_to_num())


def test_memory_that_partly_overlaps_an_input_is_refused():
    x = torch.randn(5, 4)
    with pytest.raises(errors.InvalidArgument, match="overlaps that of x"):
        ops.all_reduce.out(x[:4], y=x[1:])


def test_a_call_that_would_need_a_gradient_is_refused():
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(errors.Unimplemented, match="all_reduce: a tensor requires a gradient"):
        ops.all_reduce.out(x, y=torch.empty(3, 4))
    with torch.no_grad():
        assert torch.equal(ops.all_reduce.out(x, y=torch.empty(3, 4)), x)


def test_it_is_not_compiled_but_called_between_graphs():
    x, y = torch.randn(3, 4), torch.full((3, 4), float("nan"))

    def step(x):
        ops.all_reduce.out(x * 2, y=y)
        return y + 1

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(step)(x), x * 2 + 1)
        torch.testing.assert_close(y, x * 2)
        torch._dynamo.reset()  # or it takes what was compiled above
        with pytest.raises(Exception, match="all_reduce.out is not compiled: call it without out"):
            torch.compile(step, fullgraph=True)(x)
