"""Shape rules in Python give what the library gives; the operators' tests compare fakes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lamella.torch  # noqa: F401
from lamella import library, rows, shapes


def call(**values):
    return shapes.Call({"x": (5, 6, 7), "w": (3, 7)}, {"x": "f32"}, values, "x", rank=1, size=3)


def shape(rule, **values):
    output = rows.Tensor("y", "")
    shapes.compile("y: " + rule, [output])
    return output.shape(call(**values))


@pytest.mark.parametrize(
    "rule, values, expected",
    [
        ("x[:-1] N(w)", {}, [5, 6, 3]),
        ("x[1:] K(w)", {}, [6, 7, 7]),
        ("x[:$dim] {$total?$total:x[$dim]*size()} x[$dim+1:]", dict(dim=1, total=0), [5, 18, 7]),
        ("x[:$dim] {$total?$total:x[$dim]*size()} x[$dim+1:]", dict(dim=2, total=20), [5, 6, 20]),
        ("share(x[-1],$unit)", dict(unit=0), [2]),
        ("pieces(x[-1],4)*4+x[-1]", {}, [15]),
        ("{$save?x[:-1] N(w):none}", dict(save=0), None),
        ("{$a?{$b?1:2}:3}", dict(a=1, b=0), [2]),
        ("(x[0]+1)/2", {}, [3]),
        ("$shape", dict(shape=(4, 9)), [4, 9]),
        ("as x", {}, [5, 6, 7]),
    ],
)
def test_rules(rule, values, expected):
    assert shape(rule, **values) == expected


@pytest.mark.parametrize("rule", ["x[", "N(w", "{$a?1}", "x[:-1] )", "Q(w)", "share(1)"])
def test_a_rule_with_a_mistake_is_refused(rule):
    with pytest.raises(ValueError, match="shape rule"):
        shape(rule, a=1)


def test_shares_are_the_librarys():
    for total, unit, size in [(7, 1, 3), (12, 2, 4), (12, 4, 2), (3, 1, 5), (0, 1, 2)]:
        for rank in range(size):
            [(begin, end)] = library.shard(total, rank, size, unit)
            assert shapes.share(total, unit, rank, size) == end - begin


FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
F16 = 2 | 16 << 8


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("asked, expected", [(0, torch.bfloat16), (F16, torch.float16)])
def test_what_fp8_gives_is_bf16_or_what_is_asked_for(dtype, asked, expected):
    ops = torch.ops.lamella
    with FakeTensorMode():
        x, w = torch.empty(2, 5, 8).to(dtype), torch.empty(3, 8).to(dtype)
        s = torch.empty(1)
        y, aux = ops.linear(x, w, None, s, s, save=1, dtype=asked)
        dx = ops.linear_dgrad(torch.empty(5, 3).to(dtype), w, s, s)
        moved = ops.all_gather(x, dim=1)
    assert (y.dtype, aux.dtype, tuple(y.shape)) == (expected, expected, (2, 5, 3))
    assert dx.dtype == torch.bfloat16
    assert moved.dtype == dtype
