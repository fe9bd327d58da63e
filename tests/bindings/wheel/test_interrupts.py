"""Ctrl-C while a rank waits for a peer: the wait ends, in each host, and the peer hears of it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from wheel_commands import run

HERE = Path(__file__).resolve().parent
ENDED = ["torch_op", "torch_backward", "torch_compiled", "jax_jitted", "pipeline"]
TIMEOUT_S = 90  # far below the 10 min that a first operation may wait


def start(python, program, *arguments):
    return subprocess.Popen(
        [python, "-B", HERE / program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, JAX_PLATFORMS="cpu"),
    )


def new_ids(python, n):
    code = "import lamella\nfor _ in range(%d): print(lamella.Group.new_id().hex())" % n
    return run(python, "-c", code).split()


class Two:
    """A rank that waits through cases, and its peer."""

    def __init__(self, python, cases):
        ids = new_ids(python, len(cases))
        pairs = list(zip(cases, ids))
        met = [pair for pair in pairs if pair[0] != "create"]
        self.waiting = start(python, "waiting.py", *sum(pairs, ()))
        self.peer = start(python, "peer.py", *sum(met, ()))

    def expect(self, line):
        found = self.waiting.stdout.readline()
        assert found == line + "\n", found + self.waiting.stderr.read()

    def interrupt(self, case):
        self.expect("waiting " + case)
        self.waiting.send_signal(signal.SIGINT)

    def ask_peer(self):
        self.peer.stdin.write("\n")
        self.peer.stdin.flush()

    def end(self):
        for process in (self.waiting, self.peer):
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def two(python):
    ranks = Two(python, ["create", "handler_that_raises_nothing", *ENDED])
    yield ranks
    ranks.end()


def test_ctrl_c_ends_a_group_that_is_waited_for(two):
    two.interrupt("create")
    two.expect("create: KeyboardInterrupt")


def test_a_handler_that_raises_nothing_ends_nothing(two):
    two.interrupt("handler_that_raises_nothing")
    two.expect("heard")
    two.ask_peer()
    two.expect("signals 1")
    two.expect("handler_that_raises_nothing: nothing")
    assert two.peer.stdout.readline() == "well\n"


@pytest.mark.parametrize("case", ENDED)
def test_ctrl_c_ends_a_wait_and_the_peer_hears_of_it(two, case):
    two.interrupt(case)
    two.expect(case + ": KeyboardInterrupt")
    two.ask_peer()
    said = two.peer.stdout.readline()
    assert "rank 0 of 2: the host asked to stop" in said


def test_a_program_that_catches_nothing_ends_by_the_signal(two):
    _, error = two.waiting.communicate(timeout=TIMEOUT_S)
    assert two.waiting.returncode == -signal.SIGINT
    assert error.rstrip().endswith("KeyboardInterrupt")


def test_a_wait_on_a_thread_of_xlas_is_left_and_ends_with_the_program(python):
    ranks = Two(python, ["jax_on_another_thread"])
    try:
        ranks.interrupt("jax_on_another_thread")
        ranks.expect("jax_on_another_thread: KeyboardInterrupt")
        ranks.waiting.communicate(timeout=TIMEOUT_S)
        assert ranks.waiting.returncode == -signal.SIGINT
        ranks.ask_peer()
        assert "rank 0 of 2: the host asked to stop" in ranks.peer.stdout.readline()
    finally:
        ranks.end()
