"""Where a stage computes: the host's processors, or a GPU, whose work is queued.

On a GPU, JAX queues its programs on streams of its own, the pipeline its messages on one more.
What a program reads is ordered after that stream as DLPack says, by the reader's; after a program
the stream waits for it, by the same way round. So the host waits for no device, but where this
JAX cannot name its streams (its TFRT client): then it does, and numbers are the same.
Invariant: once a compiled function is back, the pipeline's order lets nothing write what it reads;
an array lives until it was copied.
Leaves calls of CUDA to streams.py, whose turn it is to lamella.pipeline.
"""

import threading
from collections import deque

import jax
import jax.numpy as jnp

from lamella import errors, library, pipeline
from lamella.jax import streams, views

_ranks = {}  # (a GPU's number, a group's handle): whose rank is there; handles are not used again
_joining = threading.Lock()


def of(device, tree):
    """device None: where the tree's first array lies, if on a GPU; else the host's."""
    if device is None:
        device = next(filter(is_gpu, map(device_of, jax.tree.leaves(tree))), None)
    if device is None:
        return Host(jax.local_devices(backend="cpu")[0])
    return Card(device) if is_gpu(device) else Host(device)


def device_of(leaf):
    """Its one device, else None."""
    found = leaf.devices() if isinstance(leaf, jax.Array) else ()
    return next(iter(found)) if len(found) == 1 else None


def is_gpu(device):
    return device is not None and device.platform in ("gpu", "cuda")


class Host:
    """Everything is done when a call is back."""

    described = {}  # of lamella.pipeline.Pipeline's arguments

    def __init__(self, device):
        self.device = device

    def join(self, group):
        """Before a pipeline over the group is made of stages here."""

    def compile(self, f, **options):
        """f, jitted; it returns when its results are there."""
        compiled = jax.jit(f, **options)
        return lambda *arguments: jax.block_until_ready(compiled(*arguments))

    def borrow(self, view):
        return views.borrow(view)

    def write(self, view, array, what):
        """Copies an array into a view, whose shape may be larger and becomes the array's."""
        views.fit(view, array, what)
        views.write(view, array)

    def drop(self):
        """Nothing is kept."""


class Card:
    """Everything is queued when a call is back, in the order of the pipeline's stream."""

    def __init__(self, device):
        self.device = device
        self.stream = streams.of(device.local_hardware_id)
        where = pipeline.CUDA, self.stream.device
        self.described = {"device": where, "stream": self.stream.handle}
        self._kept = deque()  # (Mark, array): copies that may be under way

    def join(self, group):
        """JAX runs one program of a device after the other: that of one rank, which waits for a
        message, would keep back that of another, which makes it."""
        with _joining:
            rank = _ranks.setdefault((self.stream.device, group.handle), group.rank)
        if rank != group.rank:
            problem = errors.InvalidArgument(
                "stages: ranks %d and %d of a group are on GPU %d in one process: JAX runs one "
                "program there at a time; use a process for each rank, or a GPU"
                % (*sorted((rank, group.rank)), self.stream.device),
                3,
            )
            library.native().lam_group_poison(group.pointer, 3, str(problem).encode())
            raise problem

    def compile(self, f, **options):
        """f, jitted; the stream waits for each of its calls. All results of a program are ready at
        once; one that is made of nothing is never an argument handed through."""

        def marked(*arguments):
            return f(*arguments), jnp.zeros((), jnp.int32)

        compiled = jax.jit(marked, **options)

        def run(*arguments):
            found, mark = compiled(*arguments)
            await_on(self.stream.handle, mark)
            return found

        return run

    def borrow(self, view):
        return views.borrow(view, self.stream)

    def write(self, view, array, what):
        """As Host's, by a copy on the stream."""
        views.fit(view, array, what)
        self.stream.copy(view.data, address_of(array), view.nbytes)
        self.drop()
        self._kept.append((streams.Mark(self.stream), array))

    def drop(self):
        """What was kept for copies that are done."""
        while self._kept and self._kept[0][0].is_passed():
            self._kept.popleft()


def await_on(stream, array):
    """A stream, by its handle, waits for an array: the way of DLPack's consumers."""
    try:
        array.__dlpack__(stream=stream)  # the capsule itself is not wanted
    except jax.errors.JaxRuntimeError as error:
        if "UNIMPLEMENTED" not in str(error):
            raise
        array.block_until_ready()


def address_of(array):
    return array.unsafe_buffer_pointer()
