"""The loss of a language model, of logits that are whole or split over a group's ranks.

Invariant: the same number as Hugging Face's loss for causal language models.
Leaves the cross entropy to its operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from lamella.group import Group
from lamella.torch.modules import vocab_parallel_cross_entropy


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    group: Group | None = None,
    **_: Any,
) -> torch.Tensor:
    """-log p(labels[..., t + 1]) at each t, averaged over those that are not `ignore_index` (or
    summed and divided by num_items_in_batch). logits [..., T, V], or with a group [..., T, V/p],
    this rank's columns of `vocab_size`. Called as Hugging Face models call their loss_function."""
    if shift_labels is None:
        shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.contiguous()
    if group is None:
        flat = logits.float().reshape(-1, vocab_size), targets.reshape(-1)
        total = functional.cross_entropy(*flat, ignore_index=ignore_index, reduction="sum")
    else:
        each = vocab_parallel_cross_entropy(logits, targets, vocab_size, group, ignore_index)
        total = each.sum()
    count = (targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    return total / count
