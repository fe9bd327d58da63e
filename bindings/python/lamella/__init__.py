"""Lamella: Transformer operators split over devices, for Python hosts.

    import lamella.torch     operators as torch.ops.lamella.<name>, modules, whole models, pipelines
    import lamella.jax       operators as functions, under jit, grad and shard_map; pipelines
    lamella.operators        any operator on any host's tensors, in place
    lamella.pipeline         pipelines whose stages are any Python objects
    python -m lamella        doctor says what is here; run -n N starts ranks

`Group` is an ordered set of ranks that an operator's `group` argument names. Every failure is a
`lamella.Error` with the library's message, of a class for its status (lamella.errors); what fails
inside JAX's compiled code is JAX's own exception, from which `lamella.errors.of` makes it.
"""

from lamella.errors import Error
from lamella.group import Group
from lamella.library import version

__all__ = ["Error", "Group", "version"]
