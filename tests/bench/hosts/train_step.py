"""A training step of a 4-layer decoder over two ranks: torch.distributed.pipelining's Schedule1F1B
with gloo, and Lamella's pipeline with the same modules, and with Lamella's linear layers in them.

1f1b has one stage per rank, as the peer has; zbv two, and a split backward. Hidden 512, sequence 128,
batch 16 in 8 micro-batches, f32, AdamW, one thread per rank. The step is that of the slower rank, its
optimizer and zero_grad included. Prints how slow torch's own f32 product is beside oneDNN's; `step/side figure ms spread`, torch's line
first; `idle/side` and
`simulated/side`: the ranks' mean idle part of the pipeline's step, measured and predicted, in per cent.

    ./lamella run --no-prefix -n 2 python train_step.py [rounds]
"""

import statistics
import sys
import warnings

import torch
import torch.distributed as dist
from figures import show
from peers import connect, in_turn, show_f32_product
from torch.distributed import pipelining

from lamella.schedule import Schedule
from lamella.torch import ColumnParallelLinear, ParallelFFN, Pipeline, RowParallelLinear

HIDDEN, HEADS, WIDTH, LAYERS, VOCABULARY = 512, 8, 2048, 4, 1024
TOKENS, BATCH, MICRO_BATCHES = 128, 16, 8
F = torch.nn.functional
PEER = "pipelining"
SIDES = {  # linear layers, schedule
    "torch_1f1b": ("torch", "1f1b"),
    "torch_zbv": ("torch", "zbv"),
    "lamella_1f1b": ("lamella", "1f1b"),
    "lamella_zbv": ("lamella", "zbv"),
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


def model(linear):
    """The whole decoder, as six layers with the same numbers whatever their kind."""
    torch.manual_seed(1)
    layers = [Layer("torch") for _ in range(LAYERS)]
    head = torch.nn.Sequential(torch.nn.LayerNorm(HIDDEN), torch.nn.Linear(HIDDEN, VOCABULARY, bias=False))
    whole = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, HIDDEN), *layers, head)
    if linear != "torch":
        state = whole.state_dict()
        for i in range(LAYERS):
            whole[1 + i] = Layer(linear)
        head[1] = LINEAR[linear][0](HIDDEN, VOCABULARY, bias=False)
        whole.load_state_dict(state)
    return whole


def stages(whole, n):
    """The whole in n stages with as many decoder layers each; the embedding is in the first, the head in the
    last one."""
    each, layers = LAYERS // n, list(whole)
    cuts = [0, *range(1 + each, 1 + LAYERS, each), len(layers)]
    return [torch.nn.Sequential(*layers[begin:end]) for begin, end in zip(cuts, cuts[1:])]


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
    """(step functions, pipelines, this rank's modules) by side."""
    modules = {PEER: stages(model("torch"), 2)[group.rank]}
    steps, pipelines = {PEER: torch_step(modules[PEER], group)}, {}
    for side, (linear, name) in SIDES.items():
        each = 2 if name == "zbv" else 1
        schedule = Schedule.build(name, group.size, MICRO_BATCHES, each)
        parts = stages(model(linear), schedule.n_stages)
        mine = [parts[i] for i in schedule.stages_of(group.rank)]
        modules[side] = torch.nn.ModuleList(mine)
        pipelines[side] = Pipeline(mine, schedule, group=group, loss_fn=loss_fn)
        steps[side] = pipelines[side].step
    return steps, pipelines, modules


def known(losses, group):
    """What one rank knows, on both."""
    mine = torch.tensor([loss or 0.0 for loss in losses])
    return torch.ops.lamella.all_reduce(mine, group=group.handle)


def main():
    warnings.filterwarnings("ignore")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    group = connect()
    show_f32_product(group)
    steps, pipelines, modules = sides_of(group)
    torch.manual_seed(2)
    ids, targets = torch.randint(VOCABULARY, (2, BATCH, TOKENS)).unbind()
    losses, shares = {side: [] for side in steps}, {side: [] for side in pipelines}

    def note(side):
        if side in pipelines:
            shares[side].append(idle(pipelines[side]))

    sides = {side: trained(modules[side], steps[side], ids, targets, losses[side]) for side in steps}
    times = in_turn(sides, group, rounds, after=note)
    learnt = {side: known(values, group) for side, values in losses.items()}
    for side in pipelines:  # all learn the same
        torch.testing.assert_close(learnt[side], learnt[PEER], rtol=1e-4, atol=1e-4)
    if group.rank == 0:
        for side, values in times.items():
            show("step/%s" % side, [us / 1e3 for us in values], "ms")
        for side, values in shares.items():
            for name, figures in zip(("idle", "simulated"), zip(*values[1:])):
                show("%s/%s" % (name, side), figures, "%")
    dist.barrier()


main()
