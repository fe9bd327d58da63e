"""lamella demo --host torch, jax, mixed: the demo's decoder in another host, beside the C one.

The programs are in hosts/: each starts from the weights that the C program wrote, reads the same
text and tells its losses; each of its workers also tells how far its first gradients are from
those of one C worker. `mixed` is one pipeline: its first stages live in PyTorch, its last ones in
C, those between them in JAX.
Invariant: every step's loss, and every gradient, is within the tolerance of the C host's, or the
demo fails.
"""

import json
import tempfile
from pathlib import Path

from bindings.cli import packages, venv
from bindings.cli.common import ROOT, Problem
from bindings.cli.demo import c_host, on_gpu, show, workers

FOLDER = Path(__file__).resolve().parent / "hosts"
NAMES = {"torch": "PyTorch", "jax": "JAX", "c": "C"}
ADAPTERS = {
    "torch": ["//bindings/torch:lamella_torch.so"],
    "jax": ["//bindings/xla:liblamella_xla.so"],
}
NATIVE = "//bindings/python/native"  # what the Python package loads, whatever the host
GRADIENT = {"f32": 1e-5, "bf16": 2e-2}  # what gradients may differ by, of their weight's largest


class Beside(c_host.Demo):
    def __init__(self, args):
        if args.save:
            raise Problem("--save: the C host writes models; leave out --host", 2)
        self.hosts = ["torch", "jax"] if args.host == "mixed" else [args.host]
        needed = [NATIVE, *sum((ADAPTERS[h] for h in self.hosts), [])]
        needed += [on_gpu.BACKEND] if args.device == "cuda" else []
        super().__init__(c_host.build(needed), args)
        self.places = self.place()
        packages.ensure("hosts")

    def device(self):
        """The C program's; what of a host is on GPUs, its plan says."""
        return []

    def make_folder(self):
        """No pictures here."""

    def place(self):
        """Which host each place of the pipeline is."""
        pp, host = self.plan["pp"], self.args.host
        if host != "mixed":
            return [host] * pp
        if pp < 3:
            raise Problem("--host mixed --pp %d: found %d places, expected 3 or more" % (pp, pp), 2)
        return ["torch", *["jax"] * (pp - 2), "c"]

    def run(self):
        show.introduce(self.plan, self.cores)
        places = ["%d in %s" % (i + 1, NAMES[host]) for i, host in enumerate(self.places)]
        print("The pipeline's places: %s." % ", ".join(places))
        with tempfile.TemporaryDirectory(prefix="lamella-demo-") as folder:
            self.write_start(Path(folder))
            show.section("Training")
            ours = self.train_c()
            theirs = self.train_hosts()
        if not self.plan["steps"]:
            return True
        passed = self.compare_losses(ours, theirs)
        return self.compare_gradients(theirs) and passed

    def write_start(self, folder):
        """The first weights, and the gradients of the first step on one worker."""
        self.weights, self.gradients = str(folder / "weights"), str(folder / "gradients")
        self.start(1, 1, ["--dtype", "f32", "--steps", "0", "--save", self.weights])
        self.start(1, 1, ["--steps", "1", "--save-gradients", self.gradients])
        more = dict(weights=self.weights, gradients=self.gradients)
        more.update(device="cuda" if self.on_gpu else "cpu")
        more.update(threads=self.threads(self.pp * self.tp), deadline=int(self.args.deadline or 0))
        self.plan_file = str(folder / "plan.json")
        Path(self.plan_file).write_text(json.dumps(dict(self.plan, **more)))

    def train_c(self):
        return self.train(NAMES["c"], self.pp, self.tp, [*self.assign, *self.schedule()])

    def train_hosts(self):
        threads = str(self.threads(self.pp * self.tp))
        variables = dict(PYTHONPATH=str(ROOT / "bindings/python"), OMP_NUM_THREADS=threads)
        name = self.args.host if self.args.host == "mixed" else NAMES[self.args.host]
        progress = show.Progress(name, self.plan["steps"], self.plan["tokens"])
        commands = [self.command(host, threads) for host in self.places for _ in range(self.tp)]
        return workers.run_commands(commands, self.tp, progress.step, **variables)

    def command(self, host, threads):
        if host != "c":
            return [venv.python(), "-B", str(FOLDER / ("%s_host.py" % host)), self.plan_file]
        place = ["--pp", str(self.pp), "--tp", str(self.tp), *self.assign, *self.schedule()]
        more = ["--threads", threads, "--check-gradients", self.gradients, "--mixed"]
        return [self.program, *self.model, *place, *more]

    def compare_losses(self, ours, theirs):
        show.section("Loss", "of the C host and of this one, step by step")
        allowed = c_host.TOLERANCE[self.plan["dtype"]]
        return show.losses(ours.losses, theirs.losses, allowed, self.args.host)

    def compare_gradients(self, told):
        show.section("Gradients", "of the first step, beside those of one C worker")
        hosts = [NAMES[host] for host in self.places for _ in range(self.tp)]
        return show.gradients(told.gradients, hosts, GRADIENT[self.plan["dtype"]])
