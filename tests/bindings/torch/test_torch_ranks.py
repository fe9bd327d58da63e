"""Operators split over ranks that are processes: torch_ranks.py holds what each rank checks."""

import os
import random
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from torch_ranks import CASES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DISORDERED = ["order_without_tokens", "order_without_inductors_part"]
ALONE = {"opcheck_transfer", *DISORDERED}  # a world of their own
TOGETHER = [name for name in CASES if name not in ALONE]
NEED_PEERS = {name for name in TOGETHER if name.startswith("transfer")}


def start(python, ranks, names):
    seed = random.randrange(2**31)
    command = [str(ROOT / "lamella"), "run", "-n", str(ranks), python, "-B"]
    done = subprocess.run(
        [*command, str(HERE / "torch_ranks.py"), *names],
        env=dict(os.environ, LAMELLA_TEST_SEED=str(seed), OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done, "seed %d\n%s%s" % (seed, done.stdout[-6000:], done.stderr[-6000:])


def cases(ranks):
    return [name for name in TOGETHER if ranks > 1 or name not in NEED_PEERS]


@cache
def outcome(python, ranks):
    return start(python, ranks, cases(ranks))


@pytest.mark.parametrize("ranks, name", [(p, name) for p in (1, 2, 3) for name in cases(p)])
def test_ranks_together_do_what_torch_does_alone(warm_python, ranks, name):
    done, text = outcome(warm_python, ranks)
    for rank in range(ranks):
        assert "[%d] ok %s\n" % (rank, name) in done.stdout, text


def test_opcheck_of_transfers(warm_python):
    done, text = start(warm_python, 2, ["opcheck_transfer"])
    assert done.returncode == 0, text


@pytest.mark.parametrize("name", DISORDERED)
def test_without_what_keeps_order_ranks_fall_out_of_step(warm_python, name):
    done, text = start(warm_python, 2, [name])
    assert re.search(r"errors\.(Mismatch|PeerStalled): ", done.stdout), text
    assert "AttributeError" not in done.stdout, text
