"""parallelize: an ordinary decoder, split over the ranks of a group.

    model = AutoModelForCausalLM.from_pretrained(...)       # any known family, or a described one
    model = lamella.torch.parallelize(model, lamella.torch.Plan(tp=2))

Invariant: every rank calls it with the same model and plan; what cannot be split is refused, by
name, before anything is changed.
Leaves which modules are split to families.py, replacing them to splitting.py.
"""

import functools
from dataclasses import dataclass

import torch

from lamella import errors
from lamella.torch import distributed, families, splitting
from lamella.torch.modules import vocab_parallel_cross_entropy


@dataclass(frozen=True)
class Plan:
    """How a model is split: over `tp` ranks within layers; ranks that hold the same layers are
    neighbours in the group. Sizes need not divide: larger shares come first.

    gather_logits  False: each rank's logits are its own columns of the vocabulary, as
                   vocab_parallel_cross_entropy takes them (and a Hugging Face model's own loss does)
    family         a Family, for a model that is not in the table
    """

    tp: int = 1
    gather_logits: bool = True
    family: families.Family = None


def parallelize(model, plan, group=None):
    """Splits `model` in place and gives it back; each rank keeps its part of the weights.

    `group`: its ranks; None = of torch.distributed, torchrun or ./lamella run. On the meta device
    the parts have no data yet: `load` gives it to them.
    """
    group = group or (distributed.group() if plan.tp > 1 else None)
    size = group.size if group else 1
    if size != plan.tp:
        raise errors.InvalidArgument("parallelize: tp=%d for a group of %d" % (plan.tp, size))
    family = plan.family or families.family_of(model)
    model.lamella = Placement(plan, family, group)
    if plan.tp > 1:
        splitter = splitting.Splitter(model, family, group, plan.gather_logits)
        splitter.apply(model, agreed_seed(group))
        if not plan.gather_logits:
            model.loss_function = functools.partial(next_token_loss, group=group)
    return model


@dataclass
class Placement:
    """What a split model is: kept as `model.lamella`."""

    plan: Plan
    family: families.Family
    tensor: object


def next_token_loss(
    logits,
    labels,
    vocab_size,
    num_items_in_batch=None,
    ignore_index=-100,
    shift_labels=None,
    group=None,
    **_,
):
    """-log p(labels[..., t + 1]) at each t, averaged over those that are not `ignore_index` (or
    summed and divided by num_items_in_batch). logits [..., T, V/p]: this rank's columns of
    `vocab_size`. Called as Hugging Face models call their loss_function."""
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.contiguous()
    each = vocab_parallel_cross_entropy(logits, targets, vocab_size, group, ignore_index)
    count = (targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    return each.sum() / count


def agreed_seed(group):
    """The first rank's torch seed, on all ranks. Collective."""
    seed = torch.tensor([torch.initial_seed() % 2**31], dtype=torch.int32)
    return int(torch.ops.lamella.broadcast(seed, group=group.handle))
