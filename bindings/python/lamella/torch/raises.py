"""Gives operators lamella.Error, of the class that the status has, where torch has a RuntimeError.

Torch's stable ABI lets a kernel say why it failed, not raise what it likes. An operator's Python
objects are given classes that catch what torch raised, which costs nothing where nothing is raised.
Invariant: what is no failure of the library's leaves as torch raised it.
Leaves what a status means to lamella.errors.
"""

import torch

from lamella import errors


OWN = {}  # torch's class: ours


def call(self, /, *args, **kwargs):
    try:
        return self._op(*args, **kwargs)
    except RuntimeError as raised:
        error = errors.of(raised)
        if error is None or error is raised:
            raise
    try:
        raise error
    finally:
        del error  # its traceback has this frame, and that the tensors


def raising(kind):
    """The class of operators' objects, with errors of the library's own."""
    return type(kind.__name__, (kind,), {"__call__": call, "__slots__": ()})


def own_errors(packet):
    """torch.ops.lamella.NAME and its overloads raise lamella.Error from now on. On a torch whose
    objects are made in another way they go on to raise RuntimeError; lamella.errors.of reads it."""
    for one in (packet.default, getattr(packet, "out", None), packet):
        kind = type(one)
        if callable(getattr(one, "_op", None)):
            try:
                one.__class__ = OWN[kind] = OWN.get(kind) or raising(kind)
            except TypeError:
                return
