"""PipelineStage: an ordinary module as a stage of a pipeline.

Invariant: what a stage reads are views of the pipeline's memory; what it writes is copied there
once. A micro-batch's graph lives from its forward to its last backward action, and weights add to
their .grad in micro-batch order.
Leaves the two parts of a backward to backward.py, batches and losses to pipeline.py.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import torch
from torch.autograd.graph import get_gradient_edge

from lamella import errors, pipeline
from lamella.torch import backward, dtypes

Graph = namedtuple("Graph", "inputs outputs")  # leaves; edges, None for what has no gradient


class OnCard:
    """A view's bytes, as torch takes memory of others on a GPU."""

    def __init__(self, view):
        data = (view.data, False)
        about = {"shape": (view.nbytes,), "typestr": "|u1", "data": data, "version": 2}
        self.__cuda_array_interface__ = about


def from_view(view: pipeline.View) -> torch.Tensor:
    """A lamella.pipeline.View as a tensor, its memory shared."""
    dtype, (kind, number) = dtypes.CODED[view.dtype], view.device
    where = "cpu" if kind == pipeline.HOST else "cuda:%d" % number
    if view.nbytes == 0:
        return torch.empty(view.shape, dtype=dtype, device=where)
    if kind == pipeline.HOST:
        return torch.frombuffer(view.memory(), dtype=dtype).view(view.shape)
    return torch.as_tensor(OnCard(view), device=where).view(dtype).view(view.shape)


def as_tuple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class PipelineStage(pipeline.Stage):
    """A module as a stage: its forward takes the stage before's outputs and gives a tensor or a
    tuple of tensors. Weights' gradients go to .grad, as ever.

    split: the backward may run in two parts, where the schedule has them; never that of a compiled
    module, whose graph has one backward. reduce_grad: a function
    of the module, called after its last backward of a step (to sum over replicas, say). A step
    raises InvalidArgument where outputs do not fit the edge's shapes and dtypes.
    """

    keeps_input = True

    def __init__(
        self,
        module: torch.nn.Module,
        split: bool = True,
        reduce_grad: Callable[[torch.nn.Module], None] | None = None,
    ) -> None:
        self.module, self.graphs, self.deferred = module, {}, {}
        self.batch = None  # of the pipeline, at its first and last stage
        self.is_training = True
        if not split or is_compiled(module):
            self.backward_input = self.backward_weight = None
        if reduce_grad is not None:
            self.reduce_grad = lambda io: reduce_grad(module)

    def begin(self, batch, is_training):
        """Before a step: `batch` has inputs and takes outputs."""
        self.batch, self.is_training = batch, is_training
        self.graphs.clear()
        self.deferred.clear()

    # -- what the pipeline calls --

    def forward(self, io):
        with torch.set_grad_enabled(self.is_training):
            if io.inputs:
                inputs = [self._leaf(from_view(view)) for view in io.inputs]
                outputs = as_tuple(self.module(*inputs))
            else:
                inputs = []
                outputs = as_tuple(self.module(*self.batch.inputs(io.micro)))
            if not io.outputs:
                outputs = as_tuple(self.batch.finish(io, outputs))
        if io.outputs:
            self._write(io, outputs)
        if self.is_training:
            self.graphs[io.micro] = Graph(inputs, [_edge(y) for y in outputs])

    def backward(self, io):
        roots, grads, inputs = self._roots(io)
        if any(weight.grad is None for weight in self.module.parameters()):
            grads = [grad.clone() for grad in grads]  # a weight may take a view of one as its .grad
        if roots:
            backward.whole(roots, grads)
        self._give(io, inputs)

    def backward_input(self, io):
        roots, grads, inputs = self._roots(io)
        # W reads them when their slot is long gone.
        kept = [grad.clone() for grad in grads]
        wanted = [x for x in inputs if x.requires_grad]
        self.deferred[io.micro] = backward.inputs_part(roots, kept, wanted) if roots else []
        self._give(io, inputs)

    def backward_weight(self, io):
        backward.weights_part(self.deferred.pop(io.micro))

    # -- tensors --

    def _leaf(self, x):
        return x.requires_grad_(self.is_training and x.is_floating_point())

    def _roots(self, io):
        """The outputs' edges, their gradients, and the inputs."""
        graph = self.graphs.pop(io.micro)
        if io.inputs:
            grads = [from_view(view) for view in io.inputs]
        else:
            grads = [torch.ones((), device=self.batch.device) for _ in graph.outputs]  # of the loss
        used = [(edge, grad) for edge, grad in zip(graph.outputs, grads) if edge is not None]
        return [edge for edge, _ in used], [grad for _, grad in used], graph.inputs

    def _write(self, io, outputs):
        if len(outputs) != len(io.outputs):
            raise errors.InvalidArgument(
                "%d outputs, the edge has %d tensors" % (len(outputs), len(io.outputs)), 3
            )
        for i, (view, y) in enumerate(zip(io.outputs, outputs)):
            if dtypes.CODES.get(y.dtype) != view.dtype or not _fits(y.shape, view.shape):
                raise errors.InvalidArgument(
                    "output %d is %s%s, the edge has at most %s%s: edges= can say what is largest"
                    % (i, y.dtype, list(y.shape), dtypes.CODED[view.dtype], list(view.shape)),
                    3,
                )
            _fill(view, y.detach())

    def _give(self, io, inputs):
        for view, x in zip(io.outputs, inputs):
            view.shape = x.shape
            if x.grad is not None:
                _fill(view, x.grad)
            elif x.requires_grad:
                from_view(view).zero_()


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether torch.compile was used on it or in it."""
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )


def _edge(y):
    return get_gradient_edge(y) if y.requires_grad else None


def _fits(shape, capacity):
    return len(shape) == len(capacity) and all(a <= b for a, b in zip(shape, capacity))


def _fill(view, tensor):
    if tuple(tensor.shape) != view.shape:
        view.shape = tensor.shape
    from_view(view).copy_(tensor)
