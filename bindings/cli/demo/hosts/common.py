"""What the demo's Python hosts share: the plan, the text's micro-batches, files of weights, and
what a worker tells.

A worker is one rank of a group: `torch_host.py PLAN` or `jax_host.py PLAN`. PLAN is a file, written
by ./lamella demo --host: what the C program said that it would do, and where it wrote the first
weights, and the first step's gradients of one worker.
Invariant: a micro-batch and a weight's first value are those of the C program, bit for bit.
Leaves the decoder, its pipeline and its optimizer to the hosts.
"""

import json
import math
import mmap
import re
import sys
import time
import traceback
from types import SimpleNamespace

import numpy

from lamella import Error, Group
from lamella.schedule import Schedule

VOCAB, MAX_MICRO = 256, 64
BETAS, EPSILON, DECAY = (0.9, 0.95), 1e-8, 0.01  # AdamW's
NORM_EPSILON = 1e-5
WORD = (1 << 64) - 1


def read_plan(path):
    with open(path) as file:
        plan = SimpleNamespace(**json.load(file))
    plan.head_size = plan.hidden // plan.heads
    plan.edge = ((plan.sequences * plan.sequence, plan.hidden), plan.dtype)  # between stages
    return plan


def layers_of(plan, stage):
    """The numbers of a stage's layers, from 0."""
    first, last, _ = plan.stages[stage]
    return range(first - 1, last)


# -- the text --


def scatter(a, b):
    """splitmix64's finish over a mixture of both."""
    z = (a * 0x9E3779B97F4A7C15 + b + 0x2545F4914F6CDD1D) & WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


class Text:
    """A text's bytes as tokens."""

    def __init__(self, plan):
        self.plan, self.bytes = plan, numpy.fromfile(plan.text, numpy.uint8)

    def whole_batch(self, step):
        """All micro-batches of a step, one after the other."""
        batches = [self.batch(step, micro) for micro in range(self.plan.micro_batches)]
        return [numpy.concatenate(rows) for rows in zip(*batches)]

    def batch(self, step, micro):
        """Tokens [sequences, sequence] of a micro-batch, and for each the one that follows it."""
        plan, place = self.plan, (step * MAX_MICRO + micro) * 256
        end = len(self.bytes) - plan.sequence
        starts = [scatter(plan.seed, place + i) % end for i in range(plan.sequences)]
        rows = [self.bytes[start : start + plan.sequence + 1] for start in starts]
        rows = numpy.stack(rows).astype(numpy.int64)
        return rows[:, :-1], rows[:, 1:]


# -- weights --


def read_safetensors(path):
    """{name: f32 array}, mapped: only what is looked at is read."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    return {
        name: numpy.frombuffer(
            data, "<f4", math.prod(t["shape"]), begin + t["data_offsets"][0]
        ).reshape(t["shape"])
        for name, t in header.items()
    }


def by_head(plan, qkv):
    """Rows of queries, keys, values of all heads, to those of head after head, so that a rank's
    heads lie together."""
    parts = qkv.reshape(3, plan.heads, plan.head_size, plan.hidden)
    return parts.swapaxes(0, 1).reshape(qkv.shape)


def weights_of(plan, stage, path):
    """A stage's weights, whole, from a file that the C program wrote: names as there, norms as
    vectors, queries by head."""
    own = ["layers.%d." % i for i in layers_of(plan, stage)]
    own += ["embedding.", "position."] if stage == 0 else []
    own += ["last_norm.", "head."] if stage == len(plan.stages) - 1 else []
    found = {name: w for name, w in read_safetensors(path).items() if name.startswith(tuple(own))}
    for name, w in found.items():
        if name.endswith("qkv.weight"):
            found[name] = by_head(plan, w)
        elif "norm" in name:
            found[name] = w[0]
    return found


# -- training --


def learning_rate(step, steps):
    """Up over the first steps, then along a cosine down to a tenth."""
    highest, warm = 3e-3, 6
    rest = steps - warm if steps > warm else 1
    if step < warm:
        return highest * (step + 1) / warm
    return highest * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / rest))


# -- a worker --


class Worker:
    """One rank: its place in the pipeline (index), its part of the matrices, its groups."""

    def __init__(self, plan):
        self.world = Group.from_env(deadline_ms=plan.deadline * 1000)
        self.index, self.part = divmod(self.world.rank, plan.tp)
        # As the C program does: ranks in other programs take part.
        self.tp = self.world.split(self.index, self.part)
        self.pp = self.world.split(self.part, self.index)
        per_rank = len(plan.stages) // plan.pp
        self.schedule = Schedule.build(plan.schedule, plan.pp, plan.micro_batches, per_rank)
        self.stages = self.schedule.stages_of(self.index)

    def share_of(self, loss):
        """What this worker adds to the sum that tells all ranks the loss: each part of the last
        stage has the whole of it, others have None or 0."""
        return loss if loss and self.part == 0 else 0.0

    def tell_step(self, step, loss, began):
        if self.world.rank == 0:
            tell(step=step, loss=loss, ms=1e3 * (time.monotonic() - began))

    def tell_difference(self, triples):
        """triples: (name, gradient, expected). The largest difference over the weight's largest
        gradient."""
        found = []
        for name, gradient, expected in triples:
            gradient, expected = numpy.asarray(gradient), numpy.asarray(expected)
            share = numpy.abs(gradient - expected).max() / numpy.abs(expected).max()
            found.append((float(numpy.nan_to_num(share, nan=numpy.inf)), name))
        difference, weight = max(found)
        tell(gradients=self.world.rank, difference=difference, weight=weight)


def tell(**message):
    print(json.dumps(message), flush=True)


def run(train):
    """A host's program: train(plan, worker). What fails is told in one line."""
    plan, worker = read_plan(sys.argv[1]), None
    try:
        worker = Worker(plan)
        train(plan, worker)
    except Exception as error:
        traceback.print_exc()
        tell(failed=worker.world.rank if worker else -1, **describe(worker, error))
        sys.exit(1)


def describe(worker, error):
    """The status, by the library's name for it, and why; hosts have exceptions of their own."""
    if not isinstance(error, Error):
        error = worker and worker.world.error or error
    name = type(error).__name__
    status = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).upper()  # PeerDead to PEER_DEAD
    why = str(error).partition("\n")[0]
    return dict(status=status, why=why if isinstance(error, Error) else "%s: %s" % (name, why))
