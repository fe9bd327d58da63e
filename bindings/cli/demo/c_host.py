"""The demo in C: the program of this folder, a host of Lamella, built, started and shown.

This module only asks for runs and shows what they tell: the split model; the same model on one
worker, whose losses must be equal; one worker and two, for the table of speeds.
Invariant: at every step the split model's loss is within the tolerance of one worker's, or the demo
fails.
"""

import json
import os
import subprocess
from pathlib import Path

from bindings.cli import bazel
from bindings.cli.common import Problem
from bindings.cli.demo import show, workers

TARGET = "//bindings/cli/demo:lamella_demo"
TOLERANCE = {"f32": 1e-4, "bf16": 5e-3}
SCALING_STEPS = 7

# Options handed on to the program as they are, which also checks them.
PASSED = {
    "--text": "train on the bytes of this file (default: the GPL, which every Debian has)",
    "--micro-batches": "micro-batches per step, of 2 sequences each (default 8)",
    "--layers": "decoder layers (default 8)",
    "--hidden": "hidden size, a multiple of 32 (default 256)",
    "--dtype": "f32 (default) or bf16: weights and activations; sums and the optimizer are f32",
    "--steps": "training steps (default 30)",
    "--seed": "of weights and batches (default 1)",
    "--deadline": "seconds that a worker may keep the others waiting in a step (default 30)",
}


def build(more=(), target=TARGET):
    """target: which program"""
    if bazel.build([target, *more]) != 0:
        raise Problem("the demo does not build; see above")
    # Not through the tree's bazel-bin link, which moves with every build of another configuration.
    return str(Path(bazel.info("bazel-bin")) / target.lstrip("/").replace(":", "/"))


class Demo:
    def __init__(self, program, args):
        self.program, self.args = program, args
        self.cores = len(os.sched_getaffinity(0))
        given = vars(args)
        self.model = []
        for name in PASSED:
            value = given[name[2:].replace("-", "_")]
            if value is not None:
                self.model += [name, value]
        self.assign = ["--assign", args.assign] if args.assign is not None else []
        self.on_gpu = args.device == "cuda"
        self.plan = self.check()
        self.make_folder()
        self.pp, self.tp = self.plan["pp"], self.plan["tp"]

    def check(self):
        """The program reads its options itself; it says what it would do, or what is wrong."""
        options = [*self.model, *self.assign, *self.device()]
        for name in ("--pp", "--tp", "--schedule", "--stages-per-rank", "--save"):
            value = vars(self.args)[name[2:].replace("-", "_")]
            options += [name, value] if value is not None else []
        done = subprocess.run([self.program, *options, "--check"], capture_output=True, text=True)
        if done.returncode != 0:
            raise Problem(done.stderr.strip().replace("lamella demo: ", "", 1), 2)
        return json.loads(done.stdout)

    def device(self):
        """Of the split model; the one that it is compared with is trained on the CPU."""
        return ["--device", "cuda"] if self.on_gpu else []

    def make_folder(self):
        try:
            os.makedirs(self.args.out, exist_ok=True)
        except OSError as error:
            raise Problem("--out %s: %s" % (self.args.out, error.strerror), 2) from None

    def threads(self, n_workers):
        return max(1, self.cores // n_workers)

    def start(self, pp, tp, extra, on_step=lambda message: None, threads=None):
        options = [*self.model, "--threads", str(threads or self.threads(pp * tp)), *extra]
        return workers.run(self.program, options, pp, tp, on_step)

    def train(self, name, pp, tp, extra):
        progress = show.Progress(name, self.plan["steps"], self.plan["tokens"])
        return self.start(pp, tp, extra, progress.step)

    def run(self):
        show.introduce(self.plan, self.cores)
        split = self.train_split()
        passed = self.compare(split)
        self.show_steps(split)
        show.section("Memory", "peak of what each worker's allocator gave, beside the formula")
        show.memory(split.memory, self.tp)
        if not self.on_gpu:  # workers that share a card say nothing of speed
            self.show_scaling()
        if split.saved:
            print("\nsaved the model to %s" % split.saved)
        return passed

    def schedule(self):
        """As it was chosen, with its stages."""
        per_rank = str(len(self.plan["stages"]) // self.pp)
        return ["--schedule", self.plan["schedule"], "--stages-per-rank", per_rank]

    def train_split(self):
        drawn = ",".join(dict.fromkeys(["layerwise", self.plan["schedule"]]))
        extra = [*self.device(), *self.assign, *self.schedule()]
        extra += ["--draw", drawn, "--out", self.args.out]
        if self.args.save:
            extra += ["--save", self.args.save]
        show.section("Training")
        return self.train(show.count(self.pp * self.tp), self.pp, self.tp, extra)

    def compare(self, split):
        """The same model on one worker: the losses must be equal."""
        if not split.losses:
            return True
        same = self.pp * self.tp == 1 and not self.on_gpu
        whole = split if same else self.train(show.count(1) + self.on_cpu(), 1, 1, [])
        show.section("Loss", "of the split model beside one worker's")
        show.curve(split.losses, whole.losses)
        allowed = TOLERANCE[self.plan["dtype"]]
        most, step = show.difference(split.losses, whole.losses)
        complete = len(split.losses) == len(whole.losses)
        return show.verdict(most, allowed, "at step %d" % step, complete)

    def on_cpu(self):
        return " on the CPU" if self.on_gpu else ""

    def show_steps(self, split):
        for name, report in split.reports.items():
            show.section("One step, %s" % name, report["about"])
            print(report["grid"].rstrip())
        reports = list(split.reports.values())
        show.section("Idle", "share of the step in which a worker has nothing to do")
        if reports[0]["shared_cores"]:
            print(show.SHARED_IDLE)
        show.idle(reports)
        show.explain(reports)
        paths = ["%s/%s.svg" % (self.args.out, name) for name in split.reports]
        print("  pictures: " + " ".join(paths))

    def show_scaling(self):
        """One worker and two, one thread each, of the same model."""
        show.section("Scaling", "the same step on one worker and on two, one thread each")
        steps = ["--steps", str(SCALING_STEPS)]
        runs = {(1, 1): self.start(1, 1, steps, threads=1)}
        if self.cores >= 2 and 2 * len(self.plan["stages"]) // self.pp <= self.plan["layers"]:
            drawn = ["--draw", self.plan["schedule"]]
            runs[2, 1] = self.start(2, 1, [*self.schedule(), *steps, *drawn], threads=1)
        if self.cores >= 2 and self.plan["heads"] > 1:
            runs[1, 2] = self.start(1, 2, steps, threads=1)
        show.scaling(runs)
        if (2, 1) in runs:
            show.section("Idle time of two workers", "one core each, on the wall's clock")
            show.explain(runs[2, 1].reports.values())
