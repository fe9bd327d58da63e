"""parallelize: an ordinary decoder, split over the ranks of a group.

    model = AutoModelForCausalLM.from_pretrained(...)       # any known family, or a described one
    model = lamella.torch.parallelize(model, lamella.torch.Plan(tp=2))

Invariant: every rank calls it with the same model and plan; what cannot be split is refused, by
name, before anything is changed.
Leaves which modules are split to families.py, replacing them to splitting.py, stages to cutting.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeVar, Union

import torch

from lamella import errors
from lamella.group import Group
from lamella.schedule import Schedule
from lamella.torch import cutting, distributed, families, splitting
from lamella.torch.loss import next_token_loss
from lamella.torch.pipelined import Pipelined

M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True)
class Plan:
    """How a model is split: over `tp` ranks within layers, and over `pp` ranks by layers. Ranks
    that hold the same layers are neighbours in the group. Sizes need not divide: larger shares
    come first. Over more ranks than there are key heads, neighbours hold the same one.

    schedule       of pp: a name of lamella.schedule.names(), or a Schedule
    micro_batches  that a training step's batch is cut into
    any_order      weight gradients need not be summed in micro-batch order
    stages_per_rank, layers  how many stages each rank has; layers of each stage, None = balanced
    gather_logits  False: each rank's logits are its own columns of the vocabulary, which
                   vocab_parallel_cross_entropy takes, and a Hugging Face model's own loss too
    loss           loss(logits, labels) of a micro-batch, a mean; None = next_token_loss
    family         a Family, for a model that is not in the table
    """

    tp: int = 1
    pp: int = 1
    schedule: object = "1f1b"
    micro_batches: int = 4
    any_order: bool = False
    stages_per_rank: int = 1
    layers: tuple = None
    gather_logits: bool = True
    loss: object = None
    family: families.Family = None


@dataclass
class Placement:
    """What a split model is and where: kept as `model.lamella`.

    tensor, pipeline: the groups that share a stage's layers and that hold other stages, or None;
    sharing: the ranks of `tensor` that hold the same key head, where those are fewer, or None;
    shared: name -> names of the same parameter in the unsplit model, itself included; names: of all
    of the unsplit model's state; width, dtype: of hidden states.
    """

    plan: Plan
    family: families.Family
    tensor: object
    pipeline: object
    schedule: object
    shared: dict
    names: frozenset
    width: int
    dtype: torch.dtype
    vocabulary: int
    sharing: object = None


def parallelize(model: M, plan: Plan, group: Group | None = None) -> Union[M, Pipelined]:
    """Splits `model`: each rank keeps its part of the weights. With pp=1 it is changed in place and
    given back; else the result is a Pipelined, and the model given is not to be used further.

    `group`: its ranks, tp * pp of them; None = of torch.distributed, torchrun or ./lamella run. On
    the meta device the parts have no data yet: lamella.torch.load gives it to them. Collective.
    Raises Unimplemented with all that cannot be split, by name, or for a model of no known family;
    InvalidArgument for a plan that the group or the model does not fit. Nothing is changed then.
    """
    group = group or (distributed.group() if plan.tp * plan.pp > 1 else None)
    size = group.size if group else 1
    if size != plan.tp * plan.pp:
        raise errors.InvalidArgument(
            "parallelize: tp=%d and pp=%d for a group of %d" % (plan.tp, plan.pp, size)
        )
    placement = place(model, plan, group)
    splitter = None
    if plan.tp > 1:
        tensor, family = placement.tensor, placement.family
        splitter = splitting.Splitter(model, family, tensor, plan.gather_logits)
        placement.sharing = splitter.sharing
    if plan.pp > 1:
        return pipelined(model, placement, splitter)
    model.lamella = placement
    if splitter:
        splitter.apply(model, agreed_seed(placement.tensor))
        if not plan.gather_logits:
            model.loss_function = functools.partial(next_token_loss, group=placement.tensor)
            model.generate = no_words
        if hasattr(model, "save_pretrained"):
            model.save_pretrained = no_part
    return model


def place(model, plan, group):
    family = plan.family or families.family_of(model)
    tensor, pipeline, schedule = group, None, None
    if plan.pp > 1:
        schedule = plan.schedule
        if isinstance(schedule, str):
            per_rank = plan.stages_per_rank
            schedule = Schedule.build(schedule, plan.pp, plan.micro_batches, per_rank)
        if schedule.n_ranks != plan.pp:
            raise errors.InvalidArgument(
                "parallelize: pp=%d, the schedule is for %d ranks" % (plan.pp, schedule.n_ranks)
            )
        tensor = group.split(group.rank // plan.tp, group.rank) if plan.tp > 1 else None
        pipeline = group.split(group.rank % plan.tp, group.rank)
    embedding = splitting.embedding_of(model, family)
    return Placement(
        plan,
        family,
        tensor,
        pipeline,
        schedule,
        splitting.shared_names(model),
        frozenset(model.state_dict(keep_vars=True)),
        embedding.embedding_dim,
        embedding.weight.dtype,
        embedding.num_embeddings,
    )


def pipelined(model, placement, splitter):
    """This rank's stages of the model."""
    plan, family, schedule = placement.plan, placement.family, placement.schedule
    cutting.check_outside(model, family)
    bounds = cutting.bounds(model, family, schedule.n_stages, plan.layers)
    seed, taken, roots = 0, {}, {}
    if splitter:
        seed = agreed_seed(placement.tensor)
    for stage in schedule.stages_of(placement.pipeline.rank):
        roots[stage] = cutting.cut(model, family, stage, bounds)
        if splitter:
            splitter.apply(roots[stage], seed, taken)
    return Pipelined(roots, placement)


def no_words(*_, **__):
    raise errors.FailedPrecondition("generate needs whole logits: Plan(gather_logits=True)")


def no_part(*_, **__):
    raise errors.Unimplemented(
        "save_pretrained would write this rank's part as if it were all: lamella.torch.save"
    )


def agreed_seed(group):
    """The first rank's torch seed, on all ranks. Collective."""
    seed = torch.tensor([torch.initial_seed() % 2**31], dtype=torch.int32)
    return int(torch.ops.lamella.broadcast(seed, group=group.handle))
