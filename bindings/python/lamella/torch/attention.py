"""torch.nn.MultiheadAttention with its heads split over a group.

Invariant: called as torch's own is; every rank gets the whole result.
Leaves softmax and its masks to torch.
"""

import math
from functools import partial

import torch
from torch.nn import functional

from lamella.torch import accumulate
from lamella.torch.modules import Cut, Split

ops = torch.ops.lamella


class ParallelAttention(Split):
    """Attention over `num_heads` heads of embed_dim / num_heads features each.

    in_proj_weight [3 E/p, E]: this rank's query, key and value rows; out_weight [E, E/p]. In the
    unsplit model the latter is out_proj.weight. Weights of the attention are the mean over heads.
    """

    weights = ("in_weight", "out_weight")  # of cross attention's queries, keys and values none

    # What torch's TransformerEncoderLayer looks at before it takes its own fused path
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim,
        num_heads,
        dropout=0.0,
        bias=True,
        batch_first=False,
        group=None,
        **where,
    ):
        super().__init__(group)
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.batch_first, self.head_dim = batch_first, embed_dim // num_heads
        features = embed_dim, self.head_dim
        rows, columns = Cut(0, (features,) * 3), Cut(1, (features,))
        self.add("in_weight", (3 * embed_dim, embed_dim), embed_dim, rows, **where)
        self.add("in_bias", (3 * embed_dim,) if bias else None, embed_dim, rows, **where)
        self.add("out_weight", (embed_dim, embed_dim), embed_dim, columns, **where)
        self.add("out_bias", (embed_dim,) if bias else None, 0, **where)

    def origin(self, name):
        return [name.replace("in_", "in_proj_").replace("out_", "out_proj.")]

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        """query [..., L, E], key and value [..., S, E] (or L, S first, without batch_first) ->
        the same as query, and weights [..., L, S] or None."""
        if need_weights and not average_attn_weights:
            raise NotImplementedError("weights of single heads are not gathered")
        is_batched = query.dim() == 3
        q, k, v = (self.heads(x, is_batched) for x in self.project(query, key, value))
        mask = self.mask(attn_mask, key_padding_mask, is_batched, q)
        causal = is_causal and mask is None
        if need_weights:
            y, weights = self.attend(q, k, v, mask, causal)
            weights = weights if is_batched else weights.squeeze(0)
        else:
            rate, weights = self.dropout if self.training else 0.0, None
            y = functional.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=causal)
        y = y.transpose(1, 2).flatten(2)  # [B, L, E/p]
        y = ops.linear_row(y, self.operand("out_weight", y), self.out_bias, group=self.group)
        if not is_batched:
            return y.squeeze(0), weights
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def project(self, query, key, value):
        """This rank's queries, keys and values, [..., E/p] each."""
        if query is key and key is value:
            return self.linear(query, self.operand("in_weight", query), self.in_bias).chunk(3, -1)
        thirds = [partial(third, i) for i in range(3)]
        weights = [accumulate.seen(self.in_weight, view) for view in thirds]
        biases = [None] * 3
        if self.in_bias is not None:
            biases = [accumulate.seen(self.in_bias, view) for view in thirds]
        return [self.linear(*one) for one in zip((query, key, value), weights, biases)]

    def linear(self, x, weight, bias):
        return ops.linear_col(x, weight, bias, group=self.group)[0]

    def heads(self, x, is_batched):
        """[B, heads, L, features] of what came as [B, L, ...], [L, B, ...] or [L, ...]."""
        if not is_batched:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def mask(self, attn_mask, key_padding_mask, is_batched, q):
        """One mask to add, [B or 1, heads or 1, L, S], or None. True = not looked at, as torch's
        attention has it; one of 3 dimensions is of batch and heads."""
        found = None
        if attn_mask is not None:
            found = added(attn_mask, q.dtype)
            if found.dim() == 3:
                begin, end = self.range(self.num_heads, 1)
                found = found.unflatten(0, (len(q), self.num_heads))[:, begin:end]
        if key_padding_mask is not None:
            keys = added(key_padding_mask, q.dtype)
            keys = keys[:, None, None] if is_batched else keys
            found = keys if found is None else found + keys
        return found

    def attend(self, q, k, v, mask, causal):
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        if causal:
            after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            mask = added(after, q.dtype)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        mean = ops.reduce_from_group(weights.sum(1), group=self.group) / self.num_heads
        return weights @ v, mean


def third(i, t):
    """Queries', keys' or values' part of a fused parameter."""
    return t.chunk(3)[i]


def added(mask, dtype):
    """A mask of bool as one to add."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
