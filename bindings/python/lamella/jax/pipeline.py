"""Pipelines whose stages are JAX functions.

    stage = lj.PipelineStage(f, params, feed=batch_of)     # f(params, *activations, *fed) -> y
    with lj.Pipeline(schedule, {rank: stage}, edges, group=group) as pipeline:
        loss = pipeline.run(step)
        gradients = stage.take_gradients()

Each part is compiled once for each shape. Activations and gradients are read where the pipeline
has them; a stage's own are added up in place, in the order of its backwards. A stage whose
parameters lie on a GPU computes there, and so does its pipeline.
Invariant: when a method returns, what it started comes before what the pipeline does next: slots
are used again.
Leaves what runs when to lamella.pipeline, what "before" is on which device to places.py,
parameters and their updates to the program.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy

from lamella import errors, pipeline
from lamella.jax import native, places, residuals
from lamella.jax.split import Split
from lamella.schedule import Schedule

# What a micro-batch's backward needs. arguments: (params, activations, fed); left: Residuals;
# result: the tree of what f gave.
Flight = namedtuple("Flight", "arguments left result")


class PipelineStage(pipeline.Stage):
    """A stage that is a pure function: f(params, *activations, *fed) gives an array, a tuple of
    them, or on the last stage the scalar loss of a micro-batch.

    params: any tree of float arrays; set it after a step. feed(step, micro): the tuple of what
    else f is given (tokens, targets, keys); it has no gradient. split: the backward is there in
    two parts also, for schedules that put off the weights' gradients. Gradients are sums over a
    step's micro-batches, float32 where a parameter has fewer bits. device: the jax.Device that
    computes, where params are put; None: the GPU on which one of them lies, else the CPU.
    An f that communicates makes its own token, and gives lamella.jax.after(y, token). What f raises
    the pipeline's run raises; InvalidArgument where its arrays do not fit the edge.
    """

    keeps_input = True  # a backward reads activations where they are

    def __init__(
        self,
        f: Callable[..., Any],
        params: Any,
        feed: Callable[[int, int], tuple] | None = None,
        split: bool = False,
        device: jax.Device | None = None,
    ) -> None:
        self.place = places.of(device, params)
        self.f, self.params, self.feed = f, params, feed
        self.forward_only = False
        self.gradients = None  # of the step so far
        self._losses = []  # of the step, on a GPU, where no method waits for one
        self._flights, self._late, self._parts = {}, {}, {}  # the third by shapes
        compiled = self.place.compile
        self._value = compiled(lambda params, activations, fed: f(params, *activations, *fed))
        self._forward = compiled(self._value_and_residuals)
        self._backward = compiled(self._all_gradients, donate_argnums=2)
        if not split:
            self.backward_input = self.backward_weight = None

    @property
    def params(self):
        return self._params

    @params.setter
    def params(self, tree):
        # Where views are: a jitted function is compiled again for arrays bound to no device.
        self._params = jax.device_put(tree, self.place.device)

    def take_gradients(self) -> Any:
        """The step's gradients, a tree as params; the next step starts from zeros."""
        found, self.gradients = self._sums(), None
        return found

    def forget(self):
        """Drops what a step left that did not end."""
        self._losses.clear()
        self._flights.clear()
        self._late.clear()
        if not self.forward_only:
            self.gradients = None

    def _sums(self):
        if self.gradients is not None:
            return self.gradients
        with jax.default_device(self.place.device):
            zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p.dtype)), self.params)
        return jax.device_put(zeros, self.place.device)

    def _fed(self, io):
        with jax.default_device(self.place.device):
            fed = jax.tree.map(jnp.array, tuple(self.feed(io.step, io.micro)))
        return jax.device_put(fed, self.place.device)

    def _take_loss(self):
        """The last step's, where it was left on a GPU: the host waits for it."""
        losses, self._losses = self._losses, []
        return sum(map(float, jax.device_get(losses)))

    # -- what is compiled --

    def _value_and_residuals(self, *arguments):
        params, activations, fed = arguments
        y, pull = jax.vjp(lambda p, xs: self.f(p, *xs, *fed), params, activations)
        return y, residuals.take(pull, jax.tree.leaves(arguments))

    def _pull(self, lasting, dy):
        """(gradients of the activations, of the parameters)"""
        arguments, left = lasting
        params, activations = residuals.give(left, jax.tree.leaves(arguments))(dy)
        return activations, params

    def _all_gradients(self, lasting, dy, sums):
        activations, params = self._pull(lasting, dy)
        return activations, _add(sums, params)

    # -- what a pipeline calls --

    def forward(self, io):
        activations = tuple(map(self.place.borrow, io.inputs))
        arguments = self.params, activations, self._fed(io) if self.feed else ()
        if self.forward_only:
            y = self._value(*arguments)
        else:
            y, left = self._forward(*arguments)
            self._flights[io.micro] = Flight(arguments, left, jax.tree.map(jax.typeof, y))
        if io.outputs:
            self._write(io.outputs, y, "stage %d's result" % io.stage)
        elif self.place.described:
            self._losses.append(y)
        else:
            io.add_loss(float(y))

    def backward(self, io):
        lasting, dy = self._land(io)
        sums, self.gradients = self._sums(), None  # its memory becomes the new one's
        activations, self.gradients = self._backward(lasting, dy, sums)
        self._write(io.outputs, activations, "stage %d's gradient" % io.stage)

    def backward_input(self, io):
        lasting, dy = self._land(io)
        parts = self._parts_of(lasting, dy)
        activations, made = parts.first(lasting, dy)
        self._late[io.micro] = parts, parts.split.of_lasting(lasting), made
        self._write(io.outputs, activations, "stage %d's gradient" % io.stage)

    def backward_weight(self, io):
        parts, picked, made = self._late.pop(io.micro)
        sums, self.gradients = self._sums(), None
        self.gradients = parts.second(picked, made, sums)

    def _parts_of(self, lasting, dy):
        leaves, structure = jax.tree.flatten((lasting, dy))
        key = structure, tuple((x.shape, x.dtype) for x in leaves)
        if key not in self._parts:
            self._parts[key] = Parts.of(Split(self._pull, lasting, dy), self.place.compile)
        return self._parts[key]

    def _land(self, io):
        """What its forward left, and the gradients of its results."""
        flight = self._flights.pop(io.micro)
        if io.inputs:
            dy = [self.place.borrow(view) for view in io.inputs]
        else:
            dy = [numpy.ones((), x.dtype) for x in jax.tree.leaves(flight.result)]
        dy = jax.tree.unflatten(jax.tree.structure(flight.result), dy)
        return (flight.arguments, flight.left), dy

    def _write(self, outputs, arrays, what):
        arrays = jax.tree.leaves(arrays)
        if len(arrays) != len(outputs):
            raise errors.InvalidArgument(
                "%s: found %d arrays, the edge has %d" % (what, len(arrays), len(outputs)), 3
            )
        for view, array in zip(outputs, arrays):
            self.place.write(view, array, what)


class Parts(namedtuple("Parts", "split first second")):
    """A Split, and its two functions compiled."""

    @classmethod
    def of(cls, split, compiled):
        def second(picked, made, sums):
            return _add(sums, split.second(picked, made))

        return cls(split, compiled(split.first), compiled(second, donate_argnums=2))


def _add(sums, found):
    leaves, structure = jax.tree.flatten(sums)
    added = [a + d.astype(a.dtype) for a, d in zip(leaves, jax.tree.leaves(found), strict=True)]
    return jax.tree.unflatten(structure, added)


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


class Pipeline(pipeline.Pipeline):
    """lamella.pipeline.Pipeline, for stages of any host. edges: for each edge of the pipeline a
    list of (shape, dtype), or of anything with both, such as jax.ShapeDtypeStruct; dtypes JAX's or
    lamella.pipeline's. Where JAX's stages compute on a GPU, its edges lie there, and a step's work
    is queued on a stream that all of the device's pipelines share. Raises what that one does, and
    InvalidArgument for stages of two devices, or two ranks of a group on one GPU in one process."""

    def __init__(
        self,
        schedule: Schedule,
        stages: Mapping[int, pipeline.Stage],
        edges: Sequence[Sequence[Any]],
        forward_only: bool = False,
        **others: Any,
    ) -> None:
        self._forward_only = forward_only
        edges = [[_capacity(tensor) for tensor in edge] for edge in edges]
        own = {number: s for number, s in stages.items() if isinstance(s, PipelineStage)}
        self._own = [*own.values()]
        others = {**_described(own, others.get("group")), **others}
        super().__init__(schedule, stages, edges, forward_only=forward_only, **others)

    def run(self, step: int = 0) -> float:
        """As lamella.pipeline.Pipeline's; a step that fails leaves nothing in its stages. On a GPU
        the host waits for the losses alone, on the last stage's rank."""
        for stage in self._own:  # which other pipelines may have too
            stage.forward_only = self._forward_only
        try:
            loss = super().run(step)
            loss += sum(stage._take_loss() for stage in self._own)
            for stage in self._own:
                stage.place.drop()
            return loss
        except BaseException:
            for stage in self._own:
                stage.forget()
            raise


def _described(stages, group):
    """Where the pipeline's own memory is to be, and its stream."""
    found = {stage.place.device: stage.place for stage in stages.values()}
    if len({place.described.get("device") for place in found.values()}) > 1:
        each = ", ".join("%d on %s" % (n, stages[n].place.device) for n in sorted(stages))
        raise errors.InvalidArgument("stages: %s: a rank's are on one device" % each, 3)
    for place in found.values():
        if group is not None:
            place.join(group)
        return place.described
    return {}


def _capacity(tensor):
    shape, dtype = (tensor.shape, tensor.dtype) if hasattr(tensor, "dtype") else tensor
    named = isinstance(dtype, str) and dtype in pipeline.DTYPES
    return tuple(shape), dtype if named else native.dtype_number(dtype)
