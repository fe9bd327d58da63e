"""Cuts a decoder into the stages of a pipeline, which keep the model's own forward.

A stage is the whole model's skeleton with its own layers alone: hidden states come in the
embedding's place, and what only the first or the last stage runs passes through on the others. So
every stage is called as the model is, with the same ids and masks.
Invariant: parameters keep the names that they have in the unsplit model.
Leaves which modules these are to families.py, running stages to pipelined.py.
"""

import copy

import torch

from lamella import errors
from lamella.torch.splitting import replace, resolve


class Layers(torch.nn.ModuleList):
    """Consecutive layers of a model, under the names that they have there."""

    def __init__(self, layers, first=0):
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(str(first + i), layer)

    def __getitem__(self, i):
        found = list(self._modules.values())[i]
        return Layers(found) if isinstance(i, slice) else found


class Received(torch.nn.Module):
    """In the embedding's place: gives what came from the stage before."""

    hidden = None

    def forward(self, *_, **__):
        return self.hidden


class Zero(torch.nn.Module):
    """In the place of what is added to the embedding's output."""

    def forward(self, *_, **__):
        return torch.zeros(())


class Same(torch.nn.Module):
    """In the place of what the stage does not run."""

    def forward(self, x, *_, **__):
        return x


STAND_IN = {"zero": Zero, "same": Same}


def bounds(model, family, n_stages, layers=None):
    """[(first, end)] of each stage's layers: `layers`, a count for each stage, or those that
    make the slowest stage fastest."""
    n = len(resolve(model, family.layers))
    if layers is None:
        layers = balanced(costs(model, family), n_stages)
    if len(layers) != n_stages or sum(layers) != n or min(layers) < 1:
        raise errors.InvalidArgument(
            "parallelize: layers=%s for %d stages of %d layers: each stage has at least one"
            % (list(layers), n_stages, n)
        )
    ends = [sum(layers[: i + 1]) for i in range(n_stages)]
    return list(zip([0, *ends], ends))


def costs(model, family):
    """Products per token of each layer, the head's with the last one."""
    found = [size(layer) for layer in resolve(model, family.layers)]
    if family.head:
        found[-1] += size(resolve(model, family.head))
    return found


def size(module):
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def balanced(costs, n_stages):
    """How many consecutive layers each stage takes, so that the slowest one is fastest."""
    n = len(costs)
    best = {(0, 0): (0, ())}  # (stages, layers) -> (slowest, counts)
    for s in range(1, n_stages + 1):
        for end in range(s, n + 1):
            ways = [
                (max(best[s - 1, begin][0], sum(costs[begin:end])), begin)
                for begin in range(s - 1, end)
                if (s - 1, begin) in best
            ]
            if ways:
                slowest, begin = min(ways)
                best[s, end] = slowest, (*best[s - 1, begin][1], end - begin)
    return best[n_stages, n][1] if (n_stages, n) in best else (0,) * n_stages


def cut(model, family, stage, bounds):
    """The stage's own copy of the model's skeleton; what it holds is shared with the model."""
    begin, end = bounds[stage]
    is_first, is_last = stage == 0, stage == len(bounds) - 1
    changes = {}
    if not is_first:
        changes[family.embedding] = Received()
        changes.update((path, STAND_IN[how]()) for path, how in family.first.items())
    if not is_last:
        changes.update((path, Same()) for path in [*family.last, family.head] if path)
    layers = list(resolve(model, family.layers))[begin:end]
    changes[family.layers] = Layers(layers, begin)
    root = skeleton(model, changes)
    for path, module in changes.items():
        replace(root, path, module.train(model.training))
    return root


def skeleton(model, paths):
    """A copy of the modules on the way to `paths`; all others are the model's own."""
    copies = {"": shallow(model)}
    for path in paths:
        parent, way = copies[""], ""
        for name in path.split(".")[:-1]:
            way = way + "." + name if way else name
            if way not in copies:
                copies[way] = parent._modules[name] = shallow(parent._modules[name])
            parent = copies[way]
    return copies[""]


def shallow(module):
    found = copy.copy(module)
    for members in ("_modules", "_parameters", "_buffers"):
        setattr(found, members, dict(getattr(module, members)))
    return found


def check_outside(model, family):
    """Where a module with parameters stands that no row places, or that every stage would run."""
    placed = [family.layers, family.embedding, family.head, *family.first, *family.last]
    for path, module in model.named_modules():
        own = any(p is not None for p in module._parameters.values())
        if own and not any((path + ".").startswith(p + ".") for p in placed if p):
            raise errors.Unimplemented(
                "parallelize: %s cannot be cut into stages: %s (%s) is in no stage: the family's "
                "row has it neither in first nor in last"
                % (type(model).__name__, path, type(module).__name__)
            )
