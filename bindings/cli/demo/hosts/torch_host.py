"""The demo's decoder in PyTorch: an ordinary nn.Module, with Lamella's layers where it is split.

Invariant: names and shapes of parameters are the file's, so that `load_state_dict` takes the whole
model's and keeps this rank's part.
"""

import copy
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import common
from lamella.torch import ColumnParallelLinear, ParallelFFN, Pipeline, RowParallelLinear

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Norm(nn.RMSNorm):
    """Its weight and its arithmetic are float32, whatever x is."""

    def __init__(self, size):
        super().__init__(size, common.NORM_EPSILON)

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, plan, group):
        super().__init__()
        self.sequence, self.head_size = plan.sequence, plan.head_size
        h, unit, where = plan.hidden, plan.head_size, dict(bias=False, group=group)
        self.qkv = ColumnParallelLinear(h, 3 * h, unit=3 * unit, **where)
        self.out = RowParallelLinear(h, h, unit=unit, **where)

    def forward(self, x):  # [T, H], of whole sequences
        heads = self.qkv(x).unflatten(0, (-1, self.sequence)).unflatten(2, (-1, 3, self.head_size))
        q, k, v = heads.transpose(1, 2).unbind(3)  # [sequences, heads, sequence, head size]
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(o.transpose(1, 2).flatten(2).flatten(0, 1))


class Layer(nn.Module):
    def __init__(self, plan, group):
        super().__init__()
        self.norm1 = Norm(plan.hidden)
        self.attention = Attention(plan, group)
        self.norm2 = Norm(plan.hidden)
        self.ffn = ParallelFFN(
            plan.hidden,
            plan.ffn,
            "silu",
            gated=True,
            bias=False,
            group=group,
            names=("gate_up", "down"),
        )

    def forward(self, x):
        mid = x + self.attention(self.norm1(x))
        return mid + self.ffn(self.norm2(mid))


class Decoder(nn.Module):
    """The layers of one stage, [T, H] to [T, H]; the first one starts from tokens, the last one
    ends in logits."""

    def __init__(self, plan, stage, group=None):
        super().__init__()
        self.plan, self.stage, h = plan, stage, plan.hidden
        if stage == 0:
            self.embedding = nn.Embedding(common.VOCAB, h)
            self.position = nn.Embedding(plan.sequence, h)
        numbers = common.layers_of(plan, stage)
        self.layers = nn.ModuleDict({str(i): Layer(plan, group) for i in numbers})
        if stage == len(plan.stages) - 1:
            self.last_norm = Norm(h)
            self.head = nn.Linear(h, common.VOCAB, bias=False)

    def forward(self, x):
        if hasattr(self, "embedding"):
            x = self.embedding(x) + self.position.weight
            x = x.flatten(0, 1).to(DTYPES[self.plan.dtype])
        for layer in self.layers.values():
            x = layer(x)
        return self.head(self.last_norm(x)) if hasattr(self, "head") else x

    def load(self, path):
        """This rank's part of a file's weights, or gradients."""
        whole = common.weights_of(self.plan, self.stage, path)
        self.load_state_dict({name: torch.tensor(w) for name, w in whole.items()})
        return self


class Rounded(nn.Module):
    """A decoder that multiplies by its matrices in bfloat16; the parameters themselves and the sums
    of their gradients stay float32."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x):
        tables = ("embedding", "position")
        matrices = {
            name: p.bfloat16()
            for name, p in self.decoder.named_parameters()
            if p.dim() > 1 and not name.startswith(tables)
        }
        return functional_call(self.decoder, matrices, (x,))


def optimizer_of(model):
    norms = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [dict(params=matrices), dict(params=norms, weight_decay=0.0)]
    return torch.optim.AdamW(
        groups, betas=common.BETAS, eps=common.EPSILON, weight_decay=common.DECAY
    )


def loss_fn(logits, targets):
    return F.cross_entropy(logits.float(), targets.flatten())


def device_of(plan, worker):
    """Workers take the machine's GPUs in turn."""
    if plan.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("--device cuda: this PyTorch sees no GPU")
    device = torch.device("cuda", worker.world.rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def train(plan, worker):
    torch.set_num_threads(plan.threads)
    text, device = common.Text(plan), device_of(plan, worker)
    models = {s: Decoder(plan, s, worker.tp).load(plan.weights).to(device) for s in worker.stages}
    optimizer = optimizer_of(nn.ModuleList(models.values()))
    stages = {s: Rounded(m) if plan.dtype == "bf16" else m for s, m in models.items()}
    edges = [[plan.edge]] * (len(plan.stages) - 1)
    more = dict(group=worker.pp, loss_fn=loss_fn, edges=edges)
    with Pipeline(stages, worker.schedule, **more) as pipeline:
        for step in range(plan.steps):
            began = time.monotonic()
            tokens, targets = (torch.tensor(t, device=device) for t in text.whole_batch(step))
            loss = pipeline.step(tokens, targets)
            if step == 0:
                worker.tell_difference(beside(models, plan.gradients))
            for group in optimizer.param_groups:
                group["lr"] = common.learning_rate(step, plan.steps)
            optimizer.step()
            optimizer.zero_grad()
            mine = torch.tensor([[float(worker.share_of(loss))]])
            whole = torch.ops.lamella.all_reduce(mine, group=worker.world.handle)
            worker.tell_step(step, whole.item(), began)


def beside(models, path):
    """(name, gradient, the one of the file) of every parameter here."""
    for model in models.values():
        expected = copy.deepcopy(model).load(path).parameters()
        for (name, p), e in zip(model.named_parameters(), expected):
            yield name, p.grad.cpu(), e.detach().cpu()


if __name__ == "__main__":
    common.run(train)
