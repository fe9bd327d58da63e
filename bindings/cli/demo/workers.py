"""One run of the demo's workers: N programs as the ranks of one group, and what they tell of it.

The workers print lines of JSON (see train.c, report.c, hosts/common.py), most of it rank 0; the
last of their other words is kept for the case that they fail.
Invariant: `run` gives back what was told, or raises a Problem of one line: which worker ended how.
"""

import json
import os
import signal
import time

from bindings.cli.common import Problem
from lamella import run as launcher

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told:
    """What one run told: per step its loss and milliseconds; reports by schedule; by rank, how far
    its gradients are from those that it was to compare them with."""

    def __init__(self):
        self.losses, self.times, self.reports, self.gradients = [], [], {}, {}
        self.memory, self.idle, self.transfer, self.saved = [], 0.0, 0.0, None


class Ear:
    """Cuts what one worker prints into lines."""

    def __init__(self, hear):
        self.hear, self.rest = hear, b""

    def add(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.hear(line.decode(errors="replace"))

    def finish(self):
        if self.rest:
            self.add(b"\n")


class Workers(launcher.World):
    """A World whose ranks talk to this program instead of to the terminal."""

    def __init__(self, tp, on_step):
        super().__init__()
        self.tp, self.on_step, self.told = tp, on_step, Told()
        self.failures, self.words = {}, {}
        self.bad = None  # the rank whose end ended the run
        self.stopped = []  # ranks that a signal had stopped by then

    def follow(self, pipe, to, rank):
        told = pipe is self.processes[rank].stdout
        ear = Ear(lambda line: self.hear(rank, line, told))
        os.set_blocking(pipe.fileno(), False)
        self.pipes.register(pipe, launcher.selectors.EVENT_READ, ear)

    def hear(self, rank, line, told):
        if not told or not line.startswith("{"):
            self.words[rank] = line
            return
        message = json.loads(line)
        if "failed" in message:
            self.failures[rank] = message
        elif "loss" in message:
            self.told.losses.append(message["loss"])
            self.told.times.append(message["ms"])
            self.on_step(message)
        elif "gradients" in message:
            self.told.gradients[message["gradients"]] = message
        elif "report" in message:
            self.told.reports[message["report"]] = message
        else:
            vars(self.told).update(message)

    def note_bad_end(self, rank):
        self.bad, self.status = rank, 1
        self.stopped = sorted(other for other in self.running if is_stopped(self.processes[other]))
        self.kill_at = time.monotonic() + launcher.GRACE_S

    def name(self, rank):
        place = (rank, rank // self.tp + 1, rank % self.tp + 1)
        return "worker %d (place %d, part %d)" % place

    def explain(self):
        if self.bad is None:
            return "interrupted"
        code, name = self.processes[self.bad].returncode, self.name(self.bad)
        when = " after step %d" % len(self.told.losses) if self.told.losses else ""
        seen = sorted({failure["status"] for failure in self.failures.values()})
        others = "; the others saw %s and ended" % ", ".join(seen) if seen else ""
        if self.stopped:
            names = " and ".join(self.name(rank) for rank in self.stopped)
            return "%s did not go on%s: stopped by a signal%s" % (names, when, others)
        if code < 0:
            return "%s was killed by %s%s%s" % (name, launcher.signal_name(-code), when, others)
        words = self.words.get(self.bad) or "exit status %d" % code
        return "%s failed%s: %s" % (name, when, self.failures.get(self.bad, {}).get("why", words))


def is_stopped(process):
    try:
        with open("/proc/%d/stat" % process.pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def run(program, options, pp, tp, on_step=lambda message: None):
    """Trains with these options on pp x tp workers."""
    command = [program, *options, "--pp", str(pp), "--tp", str(tp)]
    return run_commands([command] * (pp * tp), tp, on_step)


def run_commands(commands, tp, on_step=lambda message: None, **variables):
    """One worker for each command, with these environment variables; what they told."""
    workers = Workers(tp, on_step)
    before = {number: signal.signal(number, workers.on_signal) for number in SIGNALS}
    try:
        workers.start(commands, **variables)
        if workers.watch() != 0:
            raise Problem(workers.explain(), workers.status)
        return workers.told
    finally:
        workers.send(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)
