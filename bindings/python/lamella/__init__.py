"""Lamella: Transformer operators split over devices, for Python hosts.

    import lamella.torch   operators as torch.ops.lamella.<name>, with fakes and autograd; modules
    from lamella import operators    any operator on any host's tensors, in place

`Group` is an ordered set of ranks that an operator's `group` argument names. Every failure is a
`lamella.Error` with the library's message, or, from inside an operator, the host's own exception
with it.
"""

from lamella.errors import Error
from lamella.group import Group
from lamella.library import version

__all__ = ["Error", "Group", "version"]
