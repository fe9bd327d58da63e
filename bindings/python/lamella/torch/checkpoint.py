"""Loads a split model from the unsplit model's checkpoint, and saves one.

Safetensors files are mapped: each rank copies the pieces it holds, one after another, into memory
of their own, so that at its peak it has its own part of the model and the piece at hand.
Invariant: names and shapes are the unsplit model's; after a load no tensor is without data.
Leaves which pieces a rank holds to the split modules (Split.sources).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lamella import errors
from lamella.torch.modules import Split, whole_state_dict

ops = torch.ops.lamella
INDEX = "model.safetensors.index.json"
NEW = ".new"  # after the name of a file that is not whole yet


class Tensors:
    """A state dict as a source: name -> tensor."""

    def __init__(self, state):
        self.state = state

    def __contains__(self, name):
        return name in self.state

    def names(self):
        return list(self.state)

    def shape(self, name):
        return tuple(self.state[name].shape)

    def read(self, name, dim, begin, end):
        """This part of a tensor; all of one without dimensions."""
        tensor = self.state[name]
        return tensor.detach().narrow(dim, begin, end - begin) if tensor.dim() else tensor


class Files:
    """Safetensors files as a source: one, those that an index names, or a folder's."""

    def __init__(self, path):
        from safetensors import safe_open

        path = Path(path)
        if path.is_dir() and (path / INDEX).exists():
            path = path / INDEX
        if path.suffix == ".json":
            names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
            files = [path.parent / name for name in names]
        else:
            files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise errors.NotFound("load: no safetensors file in %s" % path)
        self.where = {}  # name -> its file, open
        for file in files:
            opened = safe_open(str(file), framework="pt", device="cpu")
            self.where.update(dict.fromkeys(opened.keys(), opened))

    def __contains__(self, name):
        return name in self.where

    def names(self):
        return list(self.where)

    def shape(self, name):
        return tuple(self.where[name].get_slice(name).get_shape())

    def read(self, name, dim, begin, end):
        """A mapped view."""
        if not self.shape(name):
            return self.where[name].get_tensor(name)
        return self.where[name].get_slice(name)[(slice(None),) * dim + (slice(begin, end),)]


def load(
    model: torch.nn.Module,
    source: str | Path | Mapping[str, torch.Tensor],
    rename: Callable[[str], str] | None = None,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Gives each parameter of a parallelized model its part of the unsplit one's, and each buffer;
    those on the meta device are made on `device`. Gives the names in `source` that the model does
    not have.

    source: a state dict, a safetensors file, or a folder or index.json of several. rename(name of
    the model) -> name in the source. Not collective: each rank reads for itself. Values are cast to
    the model's dtypes. Raises InvalidArgument that names what is missing or has another shape;
    NotFound where a folder has no such file.
    """
    source = Files(source) if isinstance(source, (str, Path)) else Tensors(source)
    loader = Loader(model, source, rename or (lambda name: name), device)
    for root in roots(model):
        for path, module in root.named_modules():
            loader.fill(path + "." if path else "", module)
    loader.refuse()
    known = {loader.rename(name) for name in loader.here.names}
    return sorted(name for name in source.names() if name not in known)


def roots(model):
    """A model's stages on this rank, or the model; names in them are the unsplit model's."""
    stages = getattr(model, "roots", None)
    return list(stages.values()) if stages is not None else [model]


class Loader:
    """One load: what was read, and what is wrong."""

    def __init__(self, model, source, rename, device):
        self.here = placement_of(model)
        self.source, self.rename, self.device = source, rename, torch.device(device)
        self.taken = {}  # id of a parameter that had no data -> (itself, the one that has)
        self.wrong = []

    def fill(self, prefix, module):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self.parameter(prefix, module, name, parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                self.buffer(prefix, module, name, buffer)

    def parameter(self, prefix, module, name, parameter):
        if id(parameter) in self.taken:
            module._parameters[name] = self.taken[id(parameter)][1]
            return
        into = parameter.detach()
        if parameter.is_meta:
            into = torch.empty_like(into, device=self.device)
        if not self.copy(prefix, module, name, into):
            return
        if parameter.is_meta:
            module._parameters[name] = torch.nn.Parameter(into, parameter.requires_grad)
        self.taken[id(parameter)] = parameter, module._parameters[name]

    def copy(self, prefix, module, name, into):
        """Piece by piece."""
        if isinstance(module, Split):
            pieces, shape = module.sources(name), module.unsplit_shape(name)
        else:
            pieces = [(name, 0, 0, len(into) if into.dim() else 0)]
            shape = tuple(into.shape)
        keys = [self.find(prefix + key) for key, *_ in pieces]
        if not all(self.fits(key, shape) for key in keys):
            return False
        at = 0
        for key, (_, dim, begin, end) in zip(keys, pieces):
            part = into.narrow(dim, at, end - begin) if into.dim() else into
            part.copy_(self.source.read(key, dim, begin, end))
            at += end - begin
        return True

    def find(self, name):
        """What the source calls it: a shared parameter may stand there under another name."""
        for other in [name, *self.here.shared.get(name, [])]:
            if self.rename(other) in self.source:
                return self.rename(other)
        self.wrong.append("%s is missing" % name)
        return None

    def fits(self, key, shape):
        if key is not None and self.source.shape(key) != shape:
            found = list(self.source.shape(key))
            self.wrong.append("%s is %s there, %s in the model" % (key, found, list(shape)))
        return key is not None and self.source.shape(key) == shape

    def buffer(self, prefix, module, name, buffer):
        if name not in module._non_persistent_buffers_set:
            if buffer.is_meta:
                buffer = module._buffers[name] = torch.empty_like(buffer, device=self.device)
            self.copy(prefix, module, name, buffer)
        elif buffer.is_meta:
            make = self.here.family.rebuild.get(name)
            if make is None:
                self.wrong.append(
                    "%s is a buffer without data that no checkpoint has: the family's `rebuild` "
                    "says nothing of %s" % (prefix + name, name)
                )
            else:
                module._buffers[name] = make(module).to(self.device)

    def refuse(self):
        if self.wrong:
            shown = self.wrong[:20] + ["and %d more" % (len(self.wrong) - 20)] * (
                len(self.wrong) > 20
            )
            text = "\n  ".join(["load: what is there does not fit:", *shown])
            raise errors.InvalidArgument(text)


def placement_of(model):
    try:
        return model.lamella
    except AttributeError:
        raise errors.InvalidArgument(
            "load: %s was not made by parallelize" % type(model).__name__
        ) from None


def save(model: torch.nn.Module, folder: str | Path) -> None:
    """Writes the unsplit model as safetensors: a file for each rank of the pipeline, and an index.
    A rank holds its own stages unsplit meanwhile. The folder is one that all ranks see; what it had
    before is replaced once all is written, and there on every rank's return. Collective. Raises
    InvalidArgument for a model that parallelize did not make, and OSError."""
    from safetensors.torch import save_file

    here, folder = placement_of(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank, n = (here.pipeline.rank, here.pipeline.size) if here.pipeline else (0, 1)
    files = ["model-%05d-of-%05d.safetensors" % (i + 1, n) for i in range(n)]
    state = {}
    for root in roots(model):
        state.update(whole_state_dict(root))
    first = {name: here.shared.get(name, [name])[0] for name in state}  # a shared one is kept once
    state = {name: t.contiguous() for name, t in state.items() if name == first[name]}
    writes = not (here.tensor and here.tensor.rank)
    if writes:
        save_file(state, str(folder / (files[rank] + NEW)), metadata={"format": "pt"})
        finish(here.pipeline)
        os.replace(folder / (files[rank] + NEW), folder / files[rank])
        finish(here.pipeline)
        if rank == 0:
            write_index(folder, files)
        finish(here.pipeline)
    finish(here.tensor)


def finish(group):
    """Returns when every rank of the group has come here."""
    if group:
        ops.all_reduce(torch.zeros(1), group=group.handle)


def write_index(folder, files):
    where = {}
    for file in files:
        where.update(dict.fromkeys(Files(folder / file).names(), file))
    text = json.dumps({"metadata": {}, "weight_map": where}, indent=1, sort_keys=True)
    (folder / (INDEX + NEW)).write_text(text + "\n")
    os.replace(folder / (INDEX + NEW), folder / INDEX)
