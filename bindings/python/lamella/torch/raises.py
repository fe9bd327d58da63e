"""Gives operators lamella.Error, of the class that the status has, where torch has a RuntimeError.

Torch's stable ABI lets a kernel say why it failed, not raise what it likes. An operator's Python
objects are given classes that catch what torch raised, which costs nothing where nothing is raised.
Invariant: what is no failure of the library's leaves as torch raised it.
Leaves what a status means to lamella.errors.
"""

from torch._ops import OpOverload, OpOverloadPacket

from lamella import errors


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


class Packet(OpOverloadPacket):
    __call__ = call


class Overload(OpOverload):
    __call__ = call


def own_errors(packet):
    """torch.ops.lamella.NAME and its one overload raise lamella.Error from now on."""
    packet.default.__class__ = Overload
    packet.__class__ = Packet
