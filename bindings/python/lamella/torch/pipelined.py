"""A decoder cut into stages over ranks, as one object on each of them.

Invariant: every rank makes the same calls with the same ids; only hidden states and gradients
travel.
Leaves cutting to cutting.py, a training step's order to pipeline.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from lamella import errors
from lamella.torch import dtypes, edges
from lamella.torch.loss import next_token_loss
from lamella.torch.modules import whole_state_dict
from lamella.torch.pipeline import Pipeline
from lamella.torch.splitting import resolve
from lamella.torch.stage import PipelineStage

ops = torch.ops.lamella


class Part(torch.nn.Module):
    """A stage as lamella.torch.Pipeline calls it: with ids, or with hidden states, of one
    micro-batch, whose other arguments its owner has."""

    def __init__(self, owner, stage):
        super().__init__()
        self.root = owner.roots[str(stage)]
        self.call = [owner.run, owner.arguments, stage]  # in a list: the owner is no submodule
        self.micro = 0

    def forward(self, x):
        run, arguments, stage = self.call
        ids, more = arguments(self.micro)
        return run(stage, x, ids, more)


class Stage(PipelineStage):
    """Tells its module which micro-batch it is called for."""

    def forward(self, io):
        self.module.micro = io.micro
        super().forward(io)


class Pipelined(torch.nn.Module):
    """What parallelize gives for pp > 1: this rank's stages of a decoder.

    model(ids [B, T]) -> logits on the ranks of the last stage, None on others; no gradients
    model.generate(ids, n) -> ids [B, T + n], greedy, on every rank
    model.step(ids, labels) -> the loss, on every rank; gradients are in .grad
    Further arguments, such as attention_mask, are the model's own; in `step`, tensors with a row
    for each of ids are cut as ids are. ids and labels are int64, or as the model takes them; calls
    raise what a Group does for peers.
    """

    def __init__(self, roots: dict[int, torch.nn.Module], placement: Any) -> None:
        super().__init__()
        self.roots = torch.nn.ModuleDict({str(stage): root for stage, root in roots.items()})
        self.lamella = placement
        self.pipeline = None  # made by the first step
        self.micro_batches = []  # of the step at hand: (ids, further arguments)
        self.targets = 1  # of the whole batch, that the loss counts

    def __getstate__(self):
        return {**self.__dict__, "pipeline": None}  # a copy makes its own

    # one pass, forwards only

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, **more: Any) -> torch.Tensor | None:
        """Without gradients, which `step` makes. Collective."""
        return self.through(ids, more)

    def through(self, ids, more, kept=None):
        """One pass; kept: {stage: further arguments of its own}."""
        here = self.lamella
        hidden = logits = None
        for stage in range(here.schedule.n_stages):
            if str(stage) not in self.roots:
                continue
            if stage > 0:
                hidden = self.receive(stage, ids.shape) if hidden is None else hidden
            hidden = self.run(stage, hidden, ids, {**more, **(kept[stage] if kept else {})})
            if stage == here.schedule.n_stages - 1:
                logits = hidden
            elif not self.is_here(stage + 1):
                self.send(stage, hidden)
                hidden = None
        return logits

    def run(self, stage, hidden, ids, more):
        root = self.roots[str(stage)]
        if stage > 0:
            resolve(root, self.lamella.family.embedding).hidden = hidden
        try:
            result = root(ids, **{**self.lamella.family.call, **more})
        finally:
            if stage > 0:
                resolve(root, self.lamella.family.embedding).hidden = None
        return getattr(result, "logits", result)

    def is_here(self, stage):
        return str(stage) in self.roots

    def send(self, stage, hidden):
        peer = self.lamella.schedule.rank_of(stage + 1)
        group = self.lamella.pipeline.handle
        ops.send_activation(hidden.detach().contiguous(), torch.zeros(1), group=group, peer=peer)

    def receive(self, stage, shape):
        peer = self.lamella.schedule.rank_of(stage - 1)
        more = dict(shape=[*shape, self.lamella.width], dtype=dtypes.CODES[self.lamella.dtype])
        group = self.lamella.pipeline.handle
        return ops.recv_activation(torch.zeros(1), group=group, peer=peer, **more)[0]

    @torch.no_grad()
    def generate(
        self, ids: torch.Tensor, max_new_tokens: int, eos_token_id: int | None = None, **more: Any
    ) -> torch.Tensor:
        """Greedy; an attention_mask [B, T] grows with the text. Each stage keeps keys and values,
        and a token sends its own hidden state alone; where the family does not say how they are
        kept, every token runs the whole text again. Collective."""
        if self.lamella.tensor and not self.lamella.plan.gather_logits:
            raise errors.FailedPrecondition("generate needs whole logits: Plan(gather_logits=True)")
        root = self.lamella.schedule.rank_of(self.lamella.schedule.n_stages - 1)
        ended, kept, new = torch.zeros(len(ids), dtype=torch.bool), self.keep(), ids
        for _ in range(max_new_tokens):
            logits = self.through(new, more, kept)
            words = torch.zeros(len(ids), dtype=torch.int32)
            if logits is not None:
                words = logits[:, -1].argmax(-1).to(torch.int32)
            words = ops.broadcast(words, group=self.lamella.pipeline.handle, root=root)
            words = words.to(ids.dtype)
            if eos_token_id is not None:
                words[ended] = eos_token_id
                ended |= words == eos_token_id
            ids = torch.cat([ids, words[:, None]], 1)
            new = ids[:, -1:] if kept else ids
            if more.get("attention_mask") is not None:
                more["attention_mask"] = functional.pad(more["attention_mask"], (0, 1), value=1)
            if ended.all():
                break
        return ids

    def keep(self):
        """{stage: what keeps one text's keys and values}, or None."""
        family = self.lamella.family
        if family.keep is None:
            return None
        kept = {}
        for stage, root in self.roots.items():
            first, _ = next(resolve(root, family.layers).named_children())
            kept[int(stage)] = family.keep(int(first))
        return kept

    # training

    def step(self, ids: torch.Tensor, labels: torch.Tensor, **more: Any) -> float:
        """Forwards and backwards of one batch: adds to .grad what the unsplit model's loss would.
        ids, labels [B, T], equal on all ranks. Collective."""
        here = self.lamella
        self.micro_batches = self.cut(ids, more)
        self.targets = int((labels[..., 1:] != -100).sum())
        if self.pipeline is None or self.shape != self.micro_batches[0][0].shape:
            self.shape = self.micro_batches[0][0].shape
            self.pipeline = self.make(self.shape)
        loss = self.pipeline.step(ids, targets=labels)
        root = here.schedule.rank_of(here.schedule.n_stages - 1)
        loss = torch.tensor([loss or 0.0])
        return ops.broadcast(loss, group=here.pipeline.handle, root=root).item()

    def cut(self, ids, more):
        """[(ids, further arguments) of each micro-batch], larger ones first."""
        n = self.lamella.schedule.n_micro
        count = ids.shape[:1]
        rows = {n: x for n, x in more.items() if torch.is_tensor(x) and x.shape[:1] == count}
        rest = {name: x for name, x in more.items() if name not in rows}
        parts = {name: x.tensor_split(n) for name, x in rows.items()}
        return [
            (own, {**rest, **{name: part[micro] for name, part in parts.items()}})
            for micro, own in enumerate(ids.tensor_split(n))
        ]

    def arguments(self, micro):
        return self.micro_batches[micro]

    def make(self, shape):
        here = self.lamella
        if self.pipeline is not None:
            self.pipeline.close()
        edge = [((*shape, here.width), here.dtype)]
        return Pipeline(
            {int(stage): Stage(Part(self, int(stage))) for stage in self.roots},
            here.schedule,
            group=here.pipeline,
            loss_fn=self.loss,
            reduction="sum",
            edges=[edge] * (here.schedule.n_stages - 1),
            tensor=here.tensor,
            tied=self.tied(),
            any_order=here.plan.any_order,
        )

    def loss(self, logits, labels):
        """This micro-batch's part of the whole batch's loss."""
        here = self.lamella
        if here.plan.loss:
            return here.plan.loss(logits, labels) / here.schedule.n_micro
        group = None if here.plan.gather_logits else here.tensor
        more = dict(num_items_in_batch=self.targets, group=group)
        return next_token_loss(logits, labels, here.vocabulary, **more)

    def tied(self):
        """[(stages, weight or None)]: weights that the first and the last stage share."""
        here = self.lamella
        row, last = here.family, here.schedule.n_stages - 1
        names = here.shared.get(row.embedding + ".weight", [])
        if row.head + ".weight" not in names:
            return []
        ends = {"0": row.embedding, str(last): row.head}
        held = [resolve(self.roots[s], path).weight for s, path in ends.items() if s in self.roots]
        return [((0, last), held[0] if held else None)]

    def whole_state_dict(self) -> dict[str, torch.Tensor]:
        """The unsplit model's state, on every rank. Collective."""
        own, state = {}, {}
        for root in self.roots.values():
            own.update(whole_state_dict(root))
        for rank in range(self.lamella.pipeline.size):
            state.update(self.from_rank(rank, own))
        return state

    def from_rank(self, rank, own):
        """A rank's tensors by name, on all of them."""
        group, found = self.lamella.pipeline, {}
        said = [[n, list(t.shape), dtypes.CODES[t.dtype]] for n, t in own.items()]
        for name, shape, code in edges.tell(group, rank, said):
            empty = torch.empty(shape, dtype=dtypes.CODED[code])
            mine = own[name].detach().contiguous() if rank == group.rank else empty
            found[name] = ops.broadcast(mine, group=group.handle, root=rank)
        return found
