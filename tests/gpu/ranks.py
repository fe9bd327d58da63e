"""Starts the ranks of gpu_torch.py and gpu_jax.py, which are processes, and says what a machine lacks for them.

Invariant: no process outlives the test that started it.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

MOST = 8  # cards
SECONDS = 150


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(script, case, size, one_card=False):
    """Each rank has a card of its own; one_card: all share the first, and are machines of their own to NCCL."""
    path, port, ranks = Path(__file__).with_name(script), free_port(), []
    for rank in range(size):
        more = {"NCCL_HOSTID": "rank-%d" % rank} if one_card else {}
        command = [sys.executable, "-B", path, case, rank, size, port]
        ranks.append(subprocess.Popen(list(map(str, command)), env=dict(os.environ, **more), text=True,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT))
    try:
        said = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, text in enumerate(said):
        assert "well\n" in text, "rank %d: %s" % (number, text[-3000:])


def need(size, cards):
    if cards < size:
        pytest.skip("not run: this machine has %d GPU%s" % (cards, "s" * (cards != 1)))
