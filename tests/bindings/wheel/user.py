"""A user's program for a type checker. A line that ends in `# wrong: KIND` has that error; no other
has any."""

import torch
from jax import Array

import lamella
import lamella.jax as lj
import lamella.torch
from lamella import errors
from lamella.pipeline import Pipeline, Schedule, Stage


def groups(id: bytes) -> int:
    with lamella.Group.create(id, 0, 2, deadline_ms=1000) as group:
        part = group.split(0)
        part.warmup()  # wrong: union-attr
        lamella.Group.create("name", 0, 2)  # wrong: arg-type
        return group.handle


def in_torch(x: torch.Tensor, w: torch.Tensor, group: lamella.Group) -> torch.Tensor:
    ops = lamella.torch.ops
    y, aux = ops.linear_col(x, w, group=group.handle, act="gelu", save=1)
    dw, db = ops.linear_wgrad(y, x, db=0)
    ops.linear_col(x, group=group.handle)  # wrong: call-arg
    ops.linear_col(x, w, group=group)  # wrong: arg-type
    ops.linear_row(x, w, gruop=1)  # wrong: call-arg
    only: torch.Tensor = ops.ffn(x, w, None, w)  # wrong: assignment
    return y + ops.all_reduce(dw, group=group.handle)


def modules(group: lamella.Group, ids: torch.Tensor) -> torch.nn.Module:
    lamella.torch.ParallelFFN(576, 1536, "silu", gated=True, group=group.handle)  # wrong: arg-type
    model = lamella.torch.ColumnParallelLinear(4, 8, group=group)
    split = lamella.torch.parallelize(model, lamella.torch.Plan(tp=2), group)
    assert lamella.torch.load(split, "model.safetensors") == []
    wrong: str = lamella.torch.load(split, {})  # wrong: assignment
    if isinstance(split, lamella.torch.Pipelined):
        wrong = split.step(ids, labels=ids)  # wrong: assignment
        split.generate(ids, 4)
    return split


def in_jax(x: Array, w: Array, group: lamella.Group) -> Array:
    token = lj.new_token()
    h, token = lj.linear_row(x, w, group=group, token=token)
    y = lj.all_reduce(h)
    pair: Array = lj.all_reduce(h, group=group, token=token)  # wrong: assignment
    lj.linear_col(x, w, 4, act=1)  # wrong: call-overload
    lj.linear_dgrad(x)  # wrong: call-arg
    return lj.after(y + h, token)


def pipeline(stages: dict[int, Stage]) -> float:
    schedule = Schedule.build("1f1b", 2, micro_batches="8")  # wrong: arg-type
    schedule.simulate(forward=[1, 2]).makespan
    with Pipeline(schedule, stages, [[((4, 8), "f32")]]) as made:
        return made.run(0)


def failures(error: Exception) -> int:
    found = errors.of(error)
    found.status  # wrong: union-attr
    return found.status if found else 0
