"""A training step of a 4-layer decoder over two ranks: torch.distributed.pipelining's Schedule1F1B
with gloo, and Lamella's pipeline with the same modules, and with Lamella's linear layers in them.

Hidden 512, sequence 128, batch 16 in 8 micro-batches, f32, AdamW, one thread per rank. The step is that
of the slower rank, its optimizer and zero_grad included. Prints `step/side figure ms spread`, torch's line
first; `idle/side` and `simulated/side`: the ranks' mean idle part of the pipeline's step, measured and
predicted, in per cent.

    ./lamella run --no-prefix -n 2 python train_step.py [rounds]
"""

import statistics
import sys
import warnings

import torch
import torch.distributed as dist
from figures import show
from peers import connect, in_turn
from torch.distributed import pipelining

from lamella.torch import ColumnParallelLinear, ParallelFFN, Pipeline, RowParallelLinear

HIDDEN, HEADS, WIDTH, LAYERS, VOCABULARY = 512, 8, 2048, 4, 1024
TOKENS, BATCH, MICRO_BATCHES = 128, 16, 8
F = torch.nn.functional
PEER = "pipelining"
SIDES = {  # linear layers, schedule
    "torch_1f1b": ("torch", "1f1b"),
    "torch_zb-h1": ("torch", "zb-h1"),
    "lamella_1f1b": ("lamella", "1f1b"),
    "lamella_zb-h1": ("lamella", "zb-h1"),
}


class TorchFFN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(HIDDEN, WIDTH), torch.nn.Linear(WIDTH, HIDDEN)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


LINEAR = {
    "torch": (torch.nn.Linear, torch.nn.Linear, TorchFFN),
    "lamella": (ColumnParallelLinear, RowParallelLinear, lambda: ParallelFFN(HIDDEN, WIDTH)),
}


class Layer(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        into, out, ffn = LINEAR[linear]
        self.norm1, self.norm2 = torch.nn.LayerNorm(HIDDEN), torch.nn.LayerNorm(HIDDEN)
        self.qkv, self.out, self.ffn = into(HIDDEN, 3 * HIDDEN), out(HIDDEN, HIDDEN), ffn()

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


def stage(rank, linear):
    """This rank's half, with the same numbers for each kind of linear layer: those of its seed."""
    torch.manual_seed(rank)
    layers = [Layer(linear) for _ in range(LAYERS // 2)]
    if rank == 0:
        return torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, HIDDEN), *layers)
    head = LINEAR[linear][0](HIDDEN, VOCABULARY, bias=False)
    return torch.nn.Sequential(*layers, torch.nn.LayerNorm(HIDDEN), head)


def loss_fn(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def torch_step(module, group):
    one = pipelining.PipelineStage(module, group.rank, group.size, torch.device("cpu"))
    schedule = pipelining.Schedule1F1B(one, MICRO_BATCHES, loss_fn)

    def step(ids, targets):
        if group.rank == 0:
            return schedule.step(ids)
        losses = []
        schedule.step(target=targets, losses=losses)
        return sum(losses).item() / MICRO_BATCHES

    return step


def trained(module, step, ids, targets, losses):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def run():
        losses.append(step(ids, targets))
        optimizer.step()
        optimizer.zero_grad()

    return run


def idle(pipeline):
    """(measured, predicted) idle part of the last step, mean over ranks."""
    found = pipeline.explained()
    measured = [(r.warm_up + r.drain + r.waiting + r.imbalance) / found.step for r in found.ranks]
    predicted = [r.predicted / found.predicted_step for r in found.ranks]
    return 100 * statistics.mean(measured), 100 * statistics.mean(predicted)


def sides_of(group):
    """(step functions, pipelines, modules) by side."""
    modules = {PEER: stage(group.rank, "torch")}
    modules.update((side, stage(group.rank, linear)) for side, (linear, _) in SIDES.items())
    pipelines = {
        side: Pipeline(modules[side], schedule, MICRO_BATCHES, group=group, loss_fn=loss_fn)
        for side, (_, schedule) in SIDES.items()
    }
    steps = {PEER: torch_step(modules[PEER], group)}
    steps.update((side, pipeline.step) for side, pipeline in pipelines.items())
    return steps, pipelines, modules


def main():
    warnings.filterwarnings("ignore")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    group = connect()
    steps, pipelines, modules = sides_of(group)
    torch.manual_seed(2)
    ids, targets = torch.randint(VOCABULARY, (2, BATCH, TOKENS)).unbind()
    losses, shares = {side: [] for side in steps}, {side: [] for side in pipelines}

    def note(side):
        if side in pipelines:
            shares[side].append(idle(pipelines[side]))

    sides = {side: trained(modules[side], steps[side], ids, targets, losses[side]) for side in steps}
    times = in_turn(sides, group, rounds, after=note)
    for side in pipelines:  # all sides learn the same; only the last stage's rank knows
        if group.rank == 1:
            torch.testing.assert_close(losses[side], losses[PEER], rtol=1e-3, atol=1e-3)
    if group.rank == 0:
        for side, values in times.items():
            show("step/%s" % side, [us / 1e3 for us in values], "ms")
        for side, values in shares.items():
            for name, figures in zip(("idle", "simulated"), zip(*values[1:])):
                show("%s/%s" % (name, side), figures, "%")
    dist.barrier()


main()
