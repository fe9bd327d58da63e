"""A decoder cut into stages over ranks, as one object on each of them.

Invariant: every rank makes the same calls with the same ids; only hidden states and gradients
travel.
Leaves cutting to cutting.py, a training step's order to pipeline.py.
"""

import torch

from lamella.torch import dtypes
from lamella.torch.splitting import resolve

ops = torch.ops.lamella


class Pipelined(torch.nn.Module):
    """What parallelize gives for pp > 1: this rank's stages of a decoder.

    model(ids [B, T]) -> logits on the ranks of the last stage, None on others
    model.generate(ids, n) -> ids [B, T + n], greedy, on every rank
    model.step(ids, labels) -> the loss, on every rank; gradients are in .grad
    Further arguments, such as attention_mask, are the model's own; in `step`, tensors with a row
    for each of ids are cut as ids are.
    """

    def __init__(self, roots, placement):
        super().__init__()
        self.roots = torch.nn.ModuleDict({str(stage): root for stage, root in roots.items()})
        self.lamella = placement
        self.pipeline = None

    # one pass, forwards only

    def forward(self, ids, **more):
        """Collective."""
        here = self.lamella
        hidden = logits = None
        for stage in range(here.schedule.n_stages):
            if str(stage) not in self.roots:
                continue
            if stage > 0:
                hidden = self.receive(stage, ids.shape) if hidden is None else hidden
            hidden = self.run(stage, hidden, ids, more)
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
            result = root(ids, **self.lamella.family.call, **more)
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
    def generate(self, ids, max_new_tokens, eos_token_id=None, **more):
        """Greedy; every token runs the whole text again. Collective."""
        root = self.lamella.schedule.rank_of(self.lamella.schedule.n_stages - 1)
        ended = torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = self(ids, **more)
            words = torch.zeros(len(ids), dtype=torch.int32)
            if logits is not None:
                words = logits[:, -1].argmax(-1).to(torch.int32)
            words = ops.broadcast(words, group=self.lamella.pipeline.handle, root=root).to(ids.dtype)
            if eos_token_id is not None:
                words[ended] = eos_token_id
                ended |= words == eos_token_id
            ids = torch.cat([ids, words[:, None]], 1)
            if ended.all():
                break
        return ids
