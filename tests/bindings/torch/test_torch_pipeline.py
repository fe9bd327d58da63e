"""Modules as stages of pipelines: torch_pipeline_ranks.py has what each rank checks.

One rank is this process, two are started by torchrun, more by ./lamella run.
"""

import os
import random
import subprocess
from functools import cache
from pathlib import Path

import lamella
import pytest
import torch

from torch_pipeline_ranks import CASES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PROGRAM = str(HERE / "torch_pipeline_ranks.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def cases(ranks):
    return [name for name, (sizes, _) in CASES.items() if ranks in sizes]


@cache
def outcome(python, ranks):
    seed = random.randrange(2**31)
    if ranks == 2:
        command = [python, *TORCHRUN, "2", PROGRAM]
    else:
        command = [str(ROOT / "lamella"), "run", "-n", str(ranks), python, "-B", PROGRAM]
    done = subprocess.run(
        [*command, *cases(ranks)],
        env=dict(os.environ, LAMELLA_TEST_SEED=str(seed), OMP_NUM_THREADS="1", PYTHON_EXEC=python),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout, "seed %d\n%s%s" % (seed, done.stdout[-6000:], done.stderr[-6000:])


@pytest.mark.parametrize("name", cases(1))
def test_a_pipeline_of_one_rank_does_what_the_whole_model_does(name):
    print("seed", torch.seed())
    with lamella.Group.create(lamella.Group.new_id(), 0, 1) as group:
        CASES[name][1](group)


@pytest.mark.parametrize("ranks, name", [(p, name) for p in (2, 3, 4) for name in cases(p)])
def test_ranks_in_a_pipeline_do_what_the_whole_model_does(warm_python, ranks, name):
    stdout, text = outcome(warm_python, ranks)
    for rank in range(ranks):
        assert "rank %d ok %s\n" % (rank, name) in stdout, text
