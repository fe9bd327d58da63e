"""Layers whose weights are split over a group, as torch.nn modules.

Each holds this rank's part of the weights. `load_state_dict` takes the unsplit model's tensors (or
this rank's own); `whole_state_dict` gives the unsplit ones back, on every rank. Sizes need not
divide: larger shares come first (lamella.library.shard).
Invariant: what every rank holds whole (the bias of a row split) starts equal on all ranks, as
zeros, and gets equal gradients.
Leaves gradients to the operators.
"""

import math

import torch

from lamella import library

ops = torch.ops.lamella


class Split(torch.nn.Module):
    """A module with split parameters; `splits` says how: name -> (dim, total, unit, gated)."""

    def __init__(self, group):
        super().__init__()
        self.rank, self.size = (group.rank, group.size) if group else (0, 1)
        self.group = group.handle if group else 0
        self.splits = {}

    def own(self, total, unit=1):
        """How many of `total` elements this rank holds."""
        [(begin, end)] = library.shard(total, self.rank, self.size, unit)
        return end - begin

    def add(self, name, shape, fan_in, split=None, **where):
        """A parameter, drawn as torch.nn.Linear draws its own; None for an absent shape."""
        parameter = torch.nn.Parameter(torch.empty(shape, **where)) if shape else None
        if parameter is not None:
            bound = 1 / math.sqrt(fan_in) if fan_in else 0  # 0: equal on all ranks
            torch.nn.init.uniform_(parameter, -bound, bound)
        self.register_parameter(name, parameter)
        if split and parameter is not None:
            self.splits[name] = split

    def part(self, name, whole):
        """This rank's part of an unsplit parameter. Anything else stays as it is: this rank's own
        part, or what load_state_dict then refuses by name."""
        dim, total, unit, gated = self.splits[name]
        if whole.dim() <= dim or whole.shape[dim] != total * (2 if gated else 1):
            return whole
        pieces = library.shard(total, self.rank, self.size, unit, gated)
        return torch.cat([whole.narrow(dim, begin, end - begin) for begin, end in pieces], dim)

    def whole(self, name):
        """The unsplit parameter, on every rank. Collective."""
        dim, total, unit, gated = self.splits[name]
        parts = getattr(self, name).detach().chunk(2 if gated else 1, dim)
        gather = dict(group=self.group, dim=dim, total=total, unit=unit)
        return torch.cat([ops.all_gather(part.contiguous(), **gather) for part in parts], dim)

    def join(self, state, prefix):
        """Where the unsplit model has other parameters, puts this module's into `state`."""

    def apart(self, state):
        """The unsplit model's parameters, from this module's unsplit ones."""
        return state

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


def whole_state_dict(model):
    """The unsplit model's state_dict, on every rank, from a model with split modules. Collective:
    all ranks call it at the same point."""
    state, taken = {}, []
    for prefix, module in model.named_modules():
        dot = prefix + "." if prefix else ""
        if isinstance(module, Split):
            state.update((dot + name, t) for name, t in module.whole_state().items())
            taken.append(dot)
    rest = model.state_dict()
    state.update((n, t) for n, t in rest.items() if not n.startswith(tuple(taken) or "\0"))
    return state


class ColumnParallelLinear(Split):
    """y = act(x w^T + b), out features split: weight [N/p, K], bias [N/p].

    forward(x [..., K]) -> [..., N/p], or [..., N] with gather_output. `unit`: features that stay
    together, such as a head's. `seq`: the whole length of x's first dimension, where each rank has
    its own rows of it; 0 = x is whole on every rank.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        group=None,
        gather_output=False,
        act="",
        unit=1,
        **where,
    ):
        super().__init__(group)
        self.in_features, self.out_features = in_features, out_features
        self.gather_output, self.act, self.unit = gather_output, act, unit
        n = self.own(out_features, unit)
        split = (0, out_features, unit, False)
        self.add("weight", (n, in_features), in_features, split, **where)
        self.add("bias", (n,) if bias else None, in_features, split, **where)

    def forward(self, x, seq=0):
        gather = dict(gather=1, total=self.out_features) if self.gather_output else {}
        more = dict(act=self.act, unit=self.unit, seq=seq, **gather)
        save = int(self.act != "" and torch.is_grad_enabled())
        return ops.linear_col(x, self.weight, self.bias, group=self.group, save=save, **more)[0]


class RowParallelLinear(Split):
    """y = x w^T + b, in features split: weight [N, K/p], bias [N] whole on every rank.

    forward(x [..., K/p]) -> [..., N] summed over the group; with input_is_parallel=False x is
    [..., K] and each rank takes its part. `seq`: each rank gets its own rows of y, whose first
    dimension is that long in all.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        group=None,
        input_is_parallel=True,
        unit=1,
        **where,
    ):
        super().__init__(group)
        self.in_features, self.out_features = in_features, out_features
        self.input_is_parallel, self.unit = input_is_parallel, unit
        shape = (out_features, self.own(in_features, unit))
        self.add("weight", shape, in_features, (1, in_features, unit, False), **where)
        self.add("bias", (out_features,) if bias else None, 0, **where)

    def forward(self, x, seq=0):
        whole = {} if self.input_is_parallel else dict(split=0, total=self.in_features)
        more = dict(unit=self.unit, seq=seq, **whole)
        return ops.linear_row(x, self.weight, self.bias, group=self.group, **more)


class ParallelFFN(Split):
    """y = act(x w1^T + b1) w2^T + b2, its width split; gated: (act(x wg^T) * (x wu^T)) w2^T.

    forward(x [..., H]) -> [..., H], one sum over the group. In the unsplit model the matrices are
    layers with `names`: gate, up, down (without `gated`: up, down), each with weight and bias;
    Llama's are ("gate_proj", "up_proj", "down_proj").
    """

    def __init__(
        self, hidden, width, act="gelu", gated=False, bias=True, group=None, names=None, **where
    ):
        super().__init__(group)
        self.act, self.gated = act, gated
        self.names = tuple(names or (("gate", "up", "down") if gated else ("up", "down")))
        rows = self.own(width) * (2 if gated else 1)
        up, down = (0, width, 1, gated), (1, width, 1, False)
        self.add("w1", (rows, hidden), hidden, up, **where)
        self.add("b1", (rows,) if bias else None, hidden, up, **where)
        self.add("w2", (hidden, self.own(width)), width, down, **where)
        self.add("b2", (hidden,) if bias else None, 0, **where)

    def forward(self, x, seq=0):
        save = int(torch.is_grad_enabled())
        more = dict(act=self.act, gated=int(self.gated), seq=seq, save=save)
        return ops.ffn(x, self.w1, self.b1, self.w2, self.b2, group=self.group, **more)[0]

    def join(self, state, prefix):
        *into, out = self.names
        for ours, theirs in (("1", into), ("2", [out])):
            for kind, name in (("w", ".weight"), ("b", ".bias")):
                keys = [prefix + layer + name for layer in theirs]
                if all(key in state for key in keys):
                    state[prefix + kind + ours] = torch.cat([state.pop(key) for key in keys])

    def apart(self, state):
        *into, out = self.names
        found = {}
        for ours, theirs in (("1", into), ("2", [out])):
            for kind, name in (("w", ".weight"), ("b", ".bias")):
                if kind + ours in state:
                    parts = state[kind + ours].chunk(len(theirs))
                    found.update((layer + name, t.clone()) for layer, t in zip(theirs, parts))
        return found


class VocabParallelEmbedding(Split):
    """y = weight[ids], the vocabulary split: weight [V/p, K]; forward(ids [...]) -> [..., K].

    `seq`: each rank gets its own rows of y, whose first dimension is that long in all.
    """

    def __init__(self, num_embeddings, embedding_dim, group=None, **where):
        super().__init__(group)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        shape, split = (self.own(num_embeddings), embedding_dim), (0, num_embeddings, 1, False)
        self.add("weight", shape, 1, split, **where)
        torch.nn.init.normal_(self.weight)

    def forward(self, ids, seq=0):
        more = dict(group=self.group, total=self.num_embeddings, seq=seq)
        return ops.embedding_vocab(ids, self.weight, **more)


def vocab_parallel_cross_entropy(logits, targets, total, group=None, ignore_index=-100):
    """-log softmax(logits)[target] per token, f32, in one exchange.

    logits [..., V/p]: this rank's columns of a vocabulary of `total`; targets [...] int. Tokens
    whose target is `ignore_index` give 0.
    """
    more = dict(group=group.handle if group else 0, total=total, ignore=ignore_index)
    return ops.cross_entropy_vocab(logits, targets, **more)[0]
