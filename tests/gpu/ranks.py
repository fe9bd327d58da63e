"""Starts the ranks of gpu_torch.py and gpu_jax.py, which are processes, and says what a machine lacks for them.

Invariant: no process outlives the test that started it.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

MOST = 8  # cards
SECONDS, GRACE = 150, 40  # the latter: longer than a group's deadline


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(script, case, size, one_card=False):
    """Each rank has a card of its own; one_card: all share the first, and are machines of their own to NCCL."""
    path, port, ranks, states = Path(__file__).with_name(script), free_port(), [], []
    try:
        for rank in range(size):
            ranks.append(start([sys.executable, "-B", path, case, rank, size, port], environment(rank, one_card)))
        states = wait([process for process, _ in ranks])
    finally:
        for process, _ in ranks:
            process.kill()
            process.wait()
    said = [read(output) for _, output in ranks]
    for number, (state, text) in enumerate(zip(states, said)):
        ended = "not in time" if state is None else "with status %d" % state
        assert "well\n" in text, "rank %d ended %s: %s" % (number, ended, text[-3000:])


def environment(rank, one_card):
    """They meet on this machine, whatever its network. JAX takes what it needs of a card's memory, not three
    quarters at once: Lamella needs some, and so do others on the card."""
    here = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    apart = {"NCCL_HOSTID": "rank-%d" % rank} if one_card else {}
    return {**here, **os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **apart}


def start(command, env):
    """(process, what it prints: a file, which takes all there is)"""
    output = tempfile.TemporaryFile()
    return subprocess.Popen(list(map(str, command)), env=env, stdin=subprocess.DEVNULL, stdout=output,
                            stderr=subprocess.STDOUT), output


def read(output):
    output.seek(0)
    return output.read().decode(errors="replace")


def wait(processes):
    """Their statuses. Once one has failed, the others have a little to say what they saw."""
    end, states = time.monotonic() + SECONDS, [None]
    while None in states and time.monotonic() < end:
        time.sleep(0.05)
        states = [process.poll() for process in processes]
        if any(states):
            end = min(end, time.monotonic() + GRACE)
    return states


def need(size, cards):
    if cards < size:
        pytest.skip("not run: this machine has %d GPU%s" % (cards, "s" * (cards != 1)))
