"""Pipeline: modules as stages, trained or run by a schedule over a group's ranks.

    stages = [PipelineStage(module)]                      # this rank's part of the model
    pipeline = lamella.torch.Pipeline(stages, "1f1b", micro_batches=8, group=group, loss_fn=loss_fn)
    for inputs, targets in data:
        loss = pipeline.step(inputs, targets=targets)     # gradients are in .grad
        optimizer.step(); optimizer.zero_grad()

Invariant: after a step every weight's .grad has what one process would have added to it, in
micro-batch order; every rank makes the same calls in the same order.
Leaves the way of a micro-batch to stage.py, edges to edges.py, all running to lamella.pipeline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lamella import errors, pipeline
from lamella.group import Group
from lamella.pipeline import Schedule
from lamella.torch import dtypes, edges
from lamella.torch.stage import PipelineStage, as_tuple

__all__ = ["Pipeline", "PipelineStage"]


class Batch:
    """One step's data on this rank, cut along the first dimension into micro-batches whose sizes
    differ by at most one; larger ones first."""

    def __init__(self, inputs, targets, micro_batches, loss_fn, reduction, device):
        self.device, self.loss = device, None  # loss: on a GPU, where no stage waits for it
        self.n, self.loss_fn, self.reduction = micro_batches, loss_fn, reduction
        self.given, self.targets = inputs, targets
        self.parts = self.target_parts = None
        self.outputs = {}

    def inputs(self, micro):
        """Cut when the first stage asks: what is wrong is then heard by all ranks."""
        if self.parts is None:
            self.parts = self._cut("inputs", self.given)
        return self.parts[micro]

    def finish(self, io, outputs):
        """The last stage's outputs: gives the loss, weighted as a part of the batch's."""
        output = outputs[0] if len(outputs) == 1 else outputs
        if self.targets is None and (self.loss_fn or not _is_scalar(output)):
            slots = [view.data for view in io.inputs]  # the next micro-batch's too
            kept = [y.clone() if y.untyped_storage().data_ptr() in slots else y for y in outputs]
            self.outputs[io.micro] = tuple(y.detach() for y in kept)
            if torch.is_grad_enabled():
                raise errors.InvalidArgument("targets: None on the last stage's rank", 3)
            return ()
        if self.targets is not None and self.target_parts is None:
            self.target_parts = self._cut("targets", self.targets)
        loss = output
        if self.loss_fn:
            target = self.target_parts[io.micro]
            loss = self.loss_fn(output, target[0] if len(target) == 1 else target)
        if not _is_scalar(loss):
            raise errors.InvalidArgument("the loss is no scalar but %s" % _about(loss), 3)
        loss = loss * self._weight(io.micro)
        self._add(io, loss)
        return loss

    def _add(self, io, loss):
        if not loss.is_cuda:
            io.add_loss(loss.item())
        elif self.loss is None:
            self.loss = loss.detach()
        else:
            self.loss = self.loss + loss.detach()

    def _weight(self, micro):
        if self.reduction == "sum":
            return 1.0
        if self.target_parts is None:
            return 1.0 / self.n
        return len(self.target_parts[micro][0]) / len(as_tuple(self.targets)[0])

    def _cut(self, name, given):
        if given is None:
            raise errors.InvalidArgument("%s: None on the rank that needs them" % name, 3)
        columns = []
        for x in as_tuple(given):
            if not torch.is_tensor(x) or x.dim() == 0 or len(x) < self.n:
                raise errors.InvalidArgument(
                    "%s: %s, expected tensors with at least %d rows, one per micro-batch"
                    % (name, _about(x), self.n),
                    3,
                )
            columns.append(torch.tensor_split(x, self.n))
        return list(zip(*columns))


class Pipeline:
    """This rank's stages of a model in a pipeline over `group` (None: all stages are here).

    stages: a module or PipelineStage, a list of them by ascending stage, or {stage: module}.
    schedule: a name (lamella.schedule.names()) or a Schedule; its stage c * p + r is rank r's, or
    in a V stages r and 2p - 1 - r are: Schedule.stages_of(rank) tells. loss_fn(output, target)
    gives a scalar: the mean over the micro-batch with reduction "mean", or the sum with "sum".
    Without loss_fn the last module gives the loss. edges: what crosses each edge of the pipeline, a
    tensor or a list of (shape, dtype), for the largest micro-batch; None: found at the first step
    by running the modules on tensors without data; later batches may be smaller. tensor: the
    group of ranks that hold the same activations. tied: [(stages, weight or None)], weights that
    several stages share; their gradients are summed over the ranks that hold them. any_order,
    bytes_per_second, codec, gradient_codec: as lamella.pipeline.Pipeline has them. device: where
    the modules' weights lie, of one type on all ranks; None: where this rank's first one does. On a
    GPU a step's work is queued on a stream of the pipeline's own, after what the caller's was given
    before and before what it is given next; the host waits for the loss alone. Everything here but
    `report` is collective. Raises InvalidArgument for what does not fit; a step what a module of
    this rank raised, and what a Group does for peers.
    """

    def __init__(
        self,
        stages: Any,
        schedule: str | Schedule = "1f1b",
        micro_batches: int = 8,
        group: Group | None = None,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        reduction: str = "mean",
        edges: Sequence[Any] | None = None,
        tensor: Group | None = None,
        tied: Sequence[tuple[Sequence[int], torch.Tensor | None]] = (),
        device: torch.device | str | None = None,
        **more: Any,
    ) -> None:
        self.group, self.loss_fn, self.reduction = group, loss_fn, reduction
        self.rank = group.rank if group else 0
        given = _stages(stages)
        if isinstance(schedule, str):
            size = group.size if group else 1
            schedule = Schedule.build(schedule, size, micro_batches, len(given))
        self.schedule = schedule
        self.stages = self._place(given, stages)
        self.edges, self.tensor, self.more = edges, tensor, more
        self.tied = [_Tied(*one, self) for one in tied]
        self.device = _device(device, [stage.module for stage in self.stages.values()])
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.native = {}  # {is_training: lamella.pipeline.Pipeline}
        self.steps = 0

    def step(self, inputs: Any = None, targets: Any = None) -> float | None:
        """One step: forwards and backwards of all micro-batches. inputs: a tensor or a tuple of
        them, on the first stage's rank; targets: on the last one's; other ranks' are not looked at.
        Gives the batch's loss, a float, on the last stage's rank; None on others."""
        for tied in self.tied:
            tied.begin()
        try:
            loss, _ = self._run(inputs, targets, is_training=True)
        finally:
            for tied in self.tied:
                tied.end()
        return loss if self.has_last else None

    def eval(self, inputs: Any = None, targets: Any = None) -> Any:
        """Forwards alone, without graphs; modules' training flags are left as they are. Gives the
        whole batch's outputs on the last stage's rank, or its loss where targets are given; None
        on others."""
        loss, outputs = self._run(inputs, targets, is_training=False)
        if not self.has_last:
            return None
        if not outputs:
            return loss
        columns = zip(*[outputs[micro] for micro in sorted(outputs)])
        joined = tuple(torch.cat(column) for column in columns)
        return joined if len(joined) > 1 else joined[0]

    def report(self) -> pipeline.Report:
        """Where the last training step's time went on this rank: lamella.pipeline.Report."""
        return self._trained().report()

    def explain(self) -> str:
        """Where the last training step's time went on all ranks, as text."""
        return self._trained().explain()

    def explained(self) -> pipeline.Explained:
        """The same with its numbers: lamella.pipeline.Explained."""
        return self._trained().explained()

    def close(self) -> None:
        """Gives its memory back; a further step makes it again."""
        for native in self.native.values():
            native.close()
        self.native.clear()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def has_last(self) -> bool:
        """Whether the last stage is on this rank."""
        return self.schedule.n_stages - 1 in self.stages

    def _place(self, given, stages):
        """{stage: PipelineStage}, where the schedule puts them."""
        known = self.rank < self.schedule.n_ranks
        expected = self.schedule.stages_of(self.rank) if known else []
        if len(given) != len(expected) or isinstance(stages, dict) and sorted(given) != expected:
            found = sorted(given) if isinstance(stages, dict) else len(given)
            raise errors.InvalidArgument(
                "stages: rank %d was given %s, the schedule puts %s on it"
                % (self.rank, found, expected),
                3,
            )
        return dict(zip(expected, [stage for _, stage in sorted(given.items())]))

    def _run(self, inputs, targets, is_training):
        m = self.schedule.n_micro
        batch = Batch(inputs, targets, m, self.loss_fn, self.reduction, self.device)
        native = self.native.get(is_training)
        if native is None or native.pointer is None:
            native = self.native[is_training] = self._create(batch, is_training)
        for stage in self.stages.values():
            stage.begin(batch, is_training)
        step, self.steps = self.steps, self.steps + 1  # from 0, as ranks in other hosts count
        try:
            with self._on_stream():
                loss = native.run(step)
            return loss if batch.loss is None else batch.loss.item(), batch.outputs
        finally:
            for stage in self.stages.values():
                stage.begin(None, is_training)  # nothing of this step is kept

    @contextlib.contextmanager
    def _on_stream(self):
        """Between what the caller's stream was given before, and what it is given next."""
        if self.stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            caller.wait_stream(self.stream)

    def _create(self, batch, is_training):
        modules = {number: stage.module for number, stage in self.stages.items()}
        if self.edges is None:
            found = edges.find(self.schedule, self.group, modules, lambda: batch.inputs(0))
        else:
            found = edges.read(self.edges)
        tied = [one.describe() for one in self.tied] if is_training else []
        return pipeline.Pipeline(
            self.schedule,
            self.stages,
            found,
            group=self.group,
            tensor=self.tensor,
            tied=tied,
            forward_only=not is_training,
            **self._where(),
            **self.more,
        )

    def _where(self):
        if self.stream is None:
            return {}
        return {"device": (pipeline.CUDA, self.device.index), "stream": self.stream.cuda_stream}

    def _trained(self):
        if True not in self.native:
            raise errors.FailedPrecondition("no training step was run yet", 9)
        return self.native[True]


class _Tied:
    """A weight that several stages share: its gradient's buffer, which the library sums over ranks
    and every step starts from zeros."""

    def __init__(self, stages, weight, owner):
        self.stages, self.weight, self.owner = tuple(stages), weight, owner
        self.buffer = None if weight is None else torch.zeros_like(weight)
        self.before = None

    def describe(self):
        """Collective: ranks that hold none of its stages learn its shape from one that does."""
        root = self.owner.schedule.rank_of(self.stages[0])
        shape, code = edges.share(self.owner.group, root, self._shape)
        data = 0 if self.weight is None else self.buffer.data_ptr()
        return pipeline.Tied(self.stages, shape, code, data)

    def _shape(self):
        if self.weight is None:
            raise errors.InvalidArgument(
                "tied: None on the rank that has stage %d" % self.stages[0], 3
            )
        return [list(self.weight.shape), dtypes.CODES[self.weight.dtype]]

    def begin(self):
        if self.weight is not None:
            before = self.weight.grad
            self.before = before.clone() if before is self.buffer else before
            self.weight.grad = self.buffer.zero_()

    def end(self):
        if self.weight is not None and self.before is not None:
            self.weight.grad.add_(self.before)
            self.before = None


def _device(given, modules):
    """With a GPU's number."""
    found = torch.device(given) if given is not None else edges.device_of(*modules)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _stages(stages):
    """{place or stage: PipelineStage}"""
    if not isinstance(stages, dict):
        stages = dict(enumerate(stages if isinstance(stages, (list, tuple)) else [stages]))
    return {
        number: stage if isinstance(stage, PipelineStage) else PipelineStage(stage)
        for number, stage in stages.items()
    }


def _is_scalar(y):
    return torch.is_tensor(y) and y.dim() == 0


def _about(x):
    return "%s%s" % (x.dtype, list(x.shape)) if torch.is_tensor(x) else type(x).__name__
