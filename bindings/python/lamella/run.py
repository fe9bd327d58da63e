"""The command run: starts N copies of a program on this machine as the ranks of one group.

Each copy gets LAMELLA_RANK, LAMELLA_SIZE and LAMELLA_ID (32 fresh random bytes in hex, from which
the library makes the group's id). What a rank prints goes through line by line with its number in
front.
Invariant: no rank outlives this command. When one ends badly, the others have 2 s to say what they
saw, then are killed, and the status of the first is the command's.
"""

import argparse
import ctypes
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time

from lamella.command import Problem, say

GRACE_S = 2.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1


def add_arguments(parser):
    parser.add_argument(
        "-n", "--ranks", type=positive, required=True, metavar="N", help="how many copies"
    )
    parser.add_argument(
        "--no-prefix", action="store_true", help="leave what the ranks print as it is"
    )
    parser.add_argument("program", metavar="PROGRAM", help="the program that each rank runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments")


def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("%r is not a number of ranks, 1 or more" % text)
    return int(text)


def main(args):
    world = World()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, world.on_signal)
    try:
        world.start([[args.program, *args.arguments]] * args.ranks, not args.no_prefix)
        return world.watch()
    finally:
        world.send(signal.SIGKILL)


class Lines:
    """Cuts one rank's bytes into lines and writes each with the rank in front."""

    def __init__(self, to, prefix):
        self.to, self.prefix, self.rest = to, prefix, b""

    def add(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.to.write(b"".join(self.prefix + line + b"\n" for line in lines))
        self.to.flush()

    def finish(self):
        if self.rest:
            self.add(b"\n")


class World:
    """The ranks' processes, what they print, and the first bad end among them."""

    def __init__(self):
        self.processes = []
        self.running = set()
        self.pipes = selectors.DefaultSelector()
        self.status = 0
        self.kill_at = None  # set by the first bad end or signal

    def start(self, commands, heard=True, **variables):
        """One command for each rank, and environment variables for all; heard: what they print
        comes here."""
        world = dict(LAMELLA_SIZE=str(len(commands)), LAMELLA_ID=secrets.token_hex(32))
        env = dict(os.environ, **variables, **world)
        pipe = subprocess.PIPE if heard else None
        libc = ctypes.CDLL(None)
        for rank, command in enumerate(commands):
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=pipe,
                    bufsize=0,
                    env=dict(env, LAMELLA_RANK=str(rank)),
                    start_new_session=True,
                    preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
                )
            except OSError as error:
                raise Problem(
                    "%s cannot be started: %s" % (command[0], error.strerror),
                    126 if isinstance(error, PermissionError) else 127,
                ) from None
            self.processes.append(process)
            self.running.add(rank)
            if pipe:
                self.follow(process.stdout, sys.stdout.buffer, rank)
                self.follow(process.stderr, sys.stderr.buffer, rank)

    def follow(self, pipe, to, rank):
        os.set_blocking(pipe.fileno(), False)
        self.pipes.register(pipe, selectors.EVENT_READ, Lines(to, b"[%d] " % rank))

    def watch(self):
        while self.running:
            self.pass_on(POLL_S)
            self.note_ends()
            if self.kill_at and time.monotonic() > self.kill_at:
                self.send(signal.SIGKILL)
        # Not until the pipes close: what a rank left behind may hold one open.
        while self.pass_on(0):
            pass
        for key in self.pipes.get_map().values():
            key.data.finish()
        return self.status

    def pass_on(self, timeout_s):
        """Writes out what the ranks printed; gives whether there was anything."""
        if not self.pipes.get_map():
            time.sleep(timeout_s)
            return False
        ready = self.pipes.select(timeout_s)
        for key, _ in ready:
            data = os.read(key.fd, 65536)
            if data:
                key.data.add(data)
            else:
                key.data.finish()
                self.pipes.unregister(key.fileobj)
        return bool(ready)

    def take_ended(self):
        ended = [rank for rank in self.running if self.processes[rank].poll() is not None]
        self.running.difference_update(ended)
        return ended

    def note_ends(self):
        ended = self.take_ended()
        if ended:  # asked once more: who ended before one of these is among them then
            ended += self.take_ended()
        bad = [rank for rank in ended if self.processes[rank].returncode != 0]
        if bad and not self.kill_at:
            # Killed ranks first: the others' own errors follow from them.
            self.note_bad_end(
                min(bad, key=lambda rank: (self.processes[rank].returncode > 0, rank))
            )

    def note_bad_end(self, rank):
        code = self.processes[rank].returncode
        self.kill_at = time.monotonic() + GRACE_S
        self.status = code if code > 0 else 128 - code
        how = (
            "exited with status %d" % code if code > 0 else "was killed by %s" % signal_name(-code)
        )
        others = len(self.running)
        say("rank %d %s%s" % (rank, how, "; stopping the other %d" % others if others else ""))

    def on_signal(self, number, frame):
        """Passed on to all ranks; the second one ends them at once."""
        again = self.kill_at is not None
        self.kill_at = time.monotonic() + (0 if again else GRACE_S)
        self.status = self.status or 128 + number
        self.send(number)

    def send(self, number):
        for rank in self.running:
            try:
                os.killpg(self.processes[rank].pid, number)
            except ProcessLookupError:
                pass


def signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal %d" % number
