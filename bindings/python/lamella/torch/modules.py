"""Layers whose weights are split over a group, as torch.nn modules.

Each holds this rank's part of the weights. `load_state_dict` takes the unsplit model's tensors (or
this rank's own); `whole_state_dict` gives the unsplit ones back, on every rank. Sizes need not
divide: larger shares come first (lamella.library.shard).
Invariant: what every rank holds whole (the bias of a row split) starts equal on all ranks, as
zeros, and gets equal gradients.
Leaves gradients to the operators.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import torch

from lamella import library
from lamella.group import Group
from lamella.torch import accumulate
from lamella.torch.packing import Packing, packs

ops = torch.ops.lamella
FEW_ROWS = 4  # bf16 at M=1: plain 0.70 of packed's time, at M=8 1.1
# Which dimension is shared out, and what lies along it: (total, unit) of each block. A gated FFN
# has gate rows, then up rows; a fused projection q, k and v.
Cut = namedtuple("Cut", "dim blocks")


class Ranges(tuple):
    """In a unit's place: (begin, end) of each rank's part, ascending. Neighbours may hold the same
    part: its gradient is then summed over them."""


class Shared(namedtuple("Shared", "group dim sizes are_shared")):
    """Blocks of a parameter, some of which the ranks of a group hold together."""

    def each(self, operator, t):
        """operator(block, group=) of those, beside the others."""
        parts = t.split(self.sizes, self.dim)
        parts = [
            operator(part.contiguous(), group=self.group) if is_shared else part
            for part, is_shared in zip(parts, self.are_shared)
        ]
        return torch.cat(parts, self.dim) if len(parts) > 1 else parts[0]

    def summed(self, t):
        return self.each(ops.all_reduce, t)


class Split(torch.nn.Module):
    """A module with split parameters; `splits` says how: name -> Cut. `weights` names those that
    products are with."""

    weights = ()
    transposed = False
    packing = None

    def __init__(self, group: Group | None) -> None:
        super().__init__()
        self.rank, self.size = (group.rank, group.size) if group else (0, 1)
        self.group = group.handle if group else 0
        self.splits = {}
        self.shared = {}  # name -> Shared

    def own(self, total, unit=1):
        """How many of `total` elements this rank holds."""
        begin, end = self.range(total, unit)
        return end - begin

    def range(self, total, unit):
        if isinstance(unit, Ranges):
            return unit[self.rank]
        [found] = library.shard(total, self.rank, self.size, unit)
        return found

    def add(self, name, shape, fan_in, cut=None, **where):
        """A parameter, drawn as torch.nn.Linear draws its own; None for an absent shape. `shape`
        is the unsplit one."""
        parameter = None
        if shape:
            shape = list(shape)
            if cut:
                shape[cut.dim] = sum(self.own(*block) for block in cut.blocks)
                self.splits[name] = cut
            parameter = torch.nn.Parameter(torch.empty(shape, **where))
            bound = 1 / math.sqrt(fan_in) if fan_in else 0  # 0: equal on all ranks
            torch.nn.init.uniform_(parameter, -bound, bound)
        self.register_parameter(name, parameter)

    def pack(self) -> Split:
        """Packs the weights for inference: where gradients are off, products are with the packed
        copies, which take as much memory again. They follow their weights; the state dict has only
        those. Changes that torch does not note, through .data, and all of them under
        torch.compile, are seen after the next `pack` or `eval`; `unpack` ends it. Weights on other
        devices than the CPU stay plain, which is as fast there."""
        self.packing = self.packing or Packing()
        for name in self.weights:
            if packs(self.plain(name)):
                self.packing.renew(name, self.plain(name))
        return self

    def unpack(self) -> Split:
        """Gives the copies back: products are with the weights again."""
        self.packing = None
        return self

    def train(self, mode=True):
        super().train(mode)
        return self.pack() if self.packing and not mode else self

    def share(self, group):
        """Tells what other ranks hold too; `group`: the handle of those with this one's parts."""
        for name, (dim, blocks) in self.splits.items():
            are_shared = [self.is_shared(unit) for _, unit in blocks]
            if any(are_shared):
                sizes = [self.own(*block) for block in blocks]
                self.shared[name] = Shared(group, dim, sizes, are_shared)

    def is_shared(self, unit):
        return isinstance(unit, Ranges) and unit.count(unit[self.rank]) > 1

    def used(self, name):
        """A parameter as it is used: gradients of what others hold too are summed over them."""
        parameter = getattr(self, name)
        shared = self.shared.get(name) if torch.is_grad_enabled() else None
        if shared is None or not parameter.requires_grad or accumulate.is_marked(parameter):
            return parameter
        return shared.each(ops.copy_to_group, parameter)

    def plain(self, name):
        """A weight as [out, in]."""
        weight = self.used(name)
        return accumulate.seen(weight, torch.t) if self.transposed else weight

    def operand(self, name, x, seq=0):
        """A weight as the product with x takes it: packed, where it was, no gradient is needed and
        x has more than a few rows, for which plain weights are read faster."""
        if accumulate.in_use and torch.compiler.is_compiling():
            accumulate.refuse_compiling(getattr(self, name))
        if self.packing is None or name not in self.weights or torch.is_grad_enabled():
            return self.plain(name)
        plain = self.plain(name)
        if not packs(plain) or (seq == 0 and x.numel() <= FEW_ROWS * x.shape[-1]):
            return plain
        return self.packing.of(name, plain)

    def origin(self, name):
        """What a parameter is called in the unsplit module: one name for each block, or one."""
        return [name]

    def sources(self, name):
        """Where this rank's parameter comes from in the unsplit module: (name there, dim, begin,
        end) of each piece, in the order in which they are joined along dim."""
        names = self.origin(name)
        if name not in self.splits:
            return [(names[0], 0, 0, getattr(self, name).shape[0])]
        dim, blocks = self.splits[name]
        found, at = [], 0
        for i, (total, unit) in enumerate(blocks):
            begin, end = self.range(total, unit)
            found.append((names[i % len(names)], dim, at + begin, at + end))
            at = at + total if len(names) == 1 else 0
        return found

    def unsplit_shape(self, name):
        """The shape of each tensor that `sources` names."""
        shape = list(getattr(self, name).shape)
        if name in self.splits:
            dim, blocks = self.splits[name]
            shape[dim] = sum(total for total, _ in blocks) // len(self.origin(name))
        return tuple(shape)

    def part(self, name, whole):
        """This rank's part of an unsplit parameter. Anything else stays as it is: this rank's own
        part, or what load_state_dict then refuses by name."""
        dim, blocks = self.splits[name]
        totals = [total for total, _ in blocks]
        if whole.dim() <= dim or whole.shape[dim] != sum(totals):
            return whole
        ranges = [self.range(*block) for block in blocks]
        parts = zip(whole.split(totals, dim), ranges)
        return torch.cat([t.narrow(dim, begin, end - begin) for t, (begin, end) in parts], dim)

    def whole(self, name, tensor=None):
        """The unsplit parameter, or a tensor that is split as it is; on every rank. Collective."""
        dim, blocks = self.splits[name]
        tensor = getattr(self, name).detach() if tensor is None else tensor
        parts = tensor.split([self.own(*block) for block in blocks], dim)
        return torch.cat([self.gather(*pair, dim) for pair in zip(parts, blocks)], dim)

    def gather(self, part, block, dim):
        total, unit = block
        if isinstance(unit, Ranges):
            return self.gather_ranges(part, unit, dim)
        more = dict(group=self.group, dim=dim, total=total, unit=unit)
        return ops.all_gather(part.contiguous(), **more)

    def gather_ranges(self, part, ranges, dim):
        """Each part from the first rank that holds it."""
        found = []
        for rank, (begin, end) in enumerate(ranges):
            if rank == 0 or ranges[rank - 1] != (begin, end):
                shape = [*part.shape[:dim], end - begin, *part.shape[dim + 1 :]]
                mine = part if rank == self.rank else part.new_empty(shape)
                more = dict(group=self.group, root=rank)
                found.append(ops.broadcast(mine.contiguous(), **more))
        return torch.cat(found, dim)

    def join(self, state, prefix):
        """Puts this module's parameters in `state` in the place of the unsplit module's."""
        for name in self._parameters:
            keys = [prefix + key for key in self.origin(name)]
            if keys != [prefix + name] and all(key in state for key in keys):
                state[prefix + name] = torch.cat([state.pop(key) for key in keys])

    def apart(self, state):
        """The unsplit module's parameters, from this one's unsplit ones."""
        found = {}
        for name, tensor in state.items():
            keys = self.origin(name)
            parts = tensor.chunk(len(keys)) if len(keys) > 1 else [tensor]
            found.update((key, t.clone() if len(keys) > 1 else t) for key, t in zip(keys, parts))
        return found

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.join(state_dict, prefix)
        for name in self.splits:
            if prefix + name in state_dict:
                state_dict[prefix + name] = self.part(name, state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def whole_state(self):
        """This module's unsplit state. Collective."""
        own = self.state_dict()
        return self.apart({n: self.whole(n) if n in self.splits else own[n] for n in own})


def whole_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The unsplit model's state_dict, on every rank, from a model with split modules, or in stages.
    Collective: all ranks call it at the same point; where they do not, Mismatch or PeerStalled."""
    if hasattr(model, "whole_state_dict"):
        return model.whole_state_dict()
    state, taken = {}, []
    for prefix, module in model.named_modules():
        dot = prefix + "." if prefix else ""
        if isinstance(module, Split):
            state.update((dot + name, t) for name, t in module.whole_state().items())
            taken.append(dot)
    rest = model.state_dict()
    state.update((n, t) for n, t in rest.items() if not n.startswith(tuple(taken) or "\0"))
    return state


def pack(model: torch.nn.Module) -> torch.nn.Module:
    """Packs the weights of all split layers in a model, for inference (Split.pack). Gives it back.
    Raises lamella.Error where this machine packs none."""
    for module in model.modules():
        if isinstance(module, Split) and module.weights:
            module.pack()
    return model


def number(unit):
    """A unit as operators take it, which look at it only where they share something out."""
    return 1 if isinstance(unit, Ranges) else unit


class ColumnParallelLinear(Split):
    """y = act(x w^T + b), out features split: weight [N/p, K], bias [N/p].

    forward(x [..., K]) -> [..., N/p], or [..., N] with gather_output. `unit`: features that stay
    together, such as a head's. `blocks`: (features, unit) of each part of a fused projection, every
    one shared out by itself. `transposed`: the weight is kept as [K, N/p]. `seq`: the whole length
    of x's first dimension, where each rank has its own rows of it; 0 = x is whole on every rank.
    """

    weights = ("weight",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group: Group | None = None,
        gather_output: bool = False,
        act: str = "",
        unit: int = 1,
        blocks: Sequence[tuple[int, int | Ranges]] | None = None,
        transposed: bool = False,
        **where: Any,
    ) -> None:
        super().__init__(group)
        blocks = tuple(blocks or [(out_features, unit)])
        if gather_output and (len(blocks) > 1 or isinstance(blocks[0][1], Ranges)):
            raise ValueError("gather_output: parts of several blocks cannot be put in one row")
        self.in_features, self.out_features = in_features, out_features
        self.gather_output, self.act, self.unit = gather_output, act, number(blocks[0][1])
        self.transposed = transposed
        shape = (in_features, out_features) if transposed else (out_features, in_features)
        self.add("weight", shape, in_features, Cut(int(transposed), blocks), **where)
        self.add("bias", (out_features,) if bias else None, in_features, Cut(0, blocks), **where)

    def forward(self, x: torch.Tensor, seq: int = 0) -> torch.Tensor:
        """x, the weights and y are of one dtype, f32 or bf16 (on CUDA also f16); InvalidArgument for
        what does not fit."""
        gather = dict(gather=1, total=self.out_features) if self.gather_output else {}
        more = dict(act=self.act, unit=self.unit, seq=seq, **gather)
        save = int(self.act != "" and torch.is_grad_enabled())
        weight, bias = self.operand("weight", x, seq), self.used("bias")
        return ops.linear_col(x, weight, bias, group=self.group, save=save, **more)[0]


class RowParallelLinear(Split):
    """y = x w^T + b, in features split: weight [N, K/p], bias [N] whole on every rank.

    forward(x [..., K/p]) -> [..., N] summed over the group; with input_is_parallel=False x is
    [..., K] and each rank takes its part. `transposed`: the weight is kept as [K/p, N]. `seq`: each
    rank gets its own rows of y, whose first dimension is that long in all.
    """

    weights = ("weight",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group: Group | None = None,
        input_is_parallel: bool = True,
        unit: int | Ranges = 1,
        transposed: bool = False,
        **where: Any,
    ) -> None:
        super().__init__(group)
        if isinstance(unit, Ranges) and not input_is_parallel:
            raise ValueError("input_is_parallel: x is taken apart by equal units only")
        self.in_features, self.out_features = in_features, out_features
        self.input_is_parallel, self.unit = input_is_parallel, number(unit)
        self.transposed = transposed
        shape = (in_features, out_features) if transposed else (out_features, in_features)
        cut = Cut(0 if transposed else 1, ((in_features, unit),))
        self.add("weight", shape, in_features, cut, **where)
        self.add("bias", (out_features,) if bias else None, 0, **where)

    def forward(self, x: torch.Tensor, seq: int = 0) -> torch.Tensor:
        """Dtypes and errors: as ColumnParallelLinear's."""
        whole = {} if self.input_is_parallel else dict(split=0, total=self.in_features)
        more = dict(unit=self.unit, seq=seq, **whole)
        weight = self.operand("weight", x, seq)
        return ops.linear_row(x, weight, self.bias, group=self.group, **more)


class ParallelFFN(Split):
    """y = act(x w1^T + b1) w2^T + b2, its width split; gated: (act(x wg^T) * (x wu^T)) w2^T.

    forward(x [..., H]) -> [..., H], one sum over the group. In the unsplit model the matrices are
    layers with `names`: gate, up, down (without `gated`: up, down), each with weight and bias;
    Llama's are ("gate_proj", "up_proj", "down_proj").
    """

    weights = ("w1", "w2")

    def __init__(
        self,
        hidden: int,
        width: int,
        act: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        group: Group | None = None,
        names: Sequence[str] | None = None,
        **where: Any,
    ) -> None:
        super().__init__(group)
        self.act, self.gated = act, gated
        self.names = tuple(names or (("gate", "up", "down") if gated else ("up", "down")))
        blocks = ((width, 1),) * (2 if gated else 1)
        rows, up, down = width * len(blocks), Cut(0, blocks), Cut(1, ((width, 1),))
        self.add("w1", (rows, hidden), hidden, up, **where)
        self.add("b1", (rows,) if bias else None, hidden, up, **where)
        self.add("w2", (hidden, width), width, down, **where)
        self.add("b2", (hidden,) if bias else None, 0, **where)

    def forward(self, x: torch.Tensor, seq: int = 0) -> torch.Tensor:
        """Dtypes and errors: as ColumnParallelLinear's."""
        save = int(torch.is_grad_enabled())
        more = dict(act=self.act, gated=int(self.gated), seq=seq, save=save)
        w1, w2 = self.operand("w1", x, seq), self.operand("w2", x, seq)
        return ops.ffn(x, w1, self.b1, w2, self.b2, group=self.group, **more)[0]

    def origin(self, name):
        *into, out = self.names
        kind = ".weight" if name[0] == "w" else ".bias"
        return [layer + kind for layer in (into if name[1] == "1" else [out])]


class VocabParallelEmbedding(Split):
    """y = weight[ids], the vocabulary split: weight [V/p, K]; forward(ids [...]) -> [..., K].

    `padding_idx`: this id's row gets no gradient from here. `seq`: each rank gets its own rows of
    y, whose first dimension is that long in all.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        group: Group | None = None,
        padding_idx: int | None = None,
        **where: Any,
    ) -> None:
        super().__init__(group)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        shape, cut = (num_embeddings, embedding_dim), Cut(0, ((num_embeddings, 1),))
        self.add("weight", shape, 1, cut, **where)
        torch.nn.init.normal_(self.weight)

    def forward(self, ids: torch.Tensor, seq: int = 0) -> torch.Tensor:
        """ids: int32 or int64, 0 to V - 1, or InvalidArgument; y is of the weight's dtype."""
        more = dict(group=self.group, total=self.num_embeddings, seq=seq)
        y = ops.embedding_vocab(ids, self.operand("weight", ids), **more)
        if self.padding_idx is None or not y.requires_grad:
            return y
        padding = ids == self.padding_idx
        if seq:
            padding = padding[slice(*self.range(seq, 1))]
        return torch.where(padding.unsqueeze(-1), y.detach(), y)


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    total: int,
    group: Group | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """-log softmax(logits)[target] per token, f32, in one exchange.

    logits [..., V/p]: this rank's columns of a vocabulary of `total`, f32 or bf16; targets [...]
    int32 or int64. Tokens whose target is `ignore_index` give 0. Raises InvalidArgument for what
    does not fit, Mismatch where ranks' targets differ in shape.
    """
    more = dict(group=group.handle if group else 0, total=total, ignore=ignore_index)
    return ops.cross_entropy_vocab(logits, targets, **more)[0]
