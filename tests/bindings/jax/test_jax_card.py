"""Pipelines whose stages compute on a GPU, in JAX: emulated, see card.py. tests/gpu's run on one."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from bindings.cli import bazel, headers
from bindings.cli.common import ROOT

SEED = int(os.environ.get("LAMELLA_TEST_SEED", secrets.randbits(32)))
STANDIN = "tests/bindings/jax/libcuda_standin.so"
CASES = ["one_rank", "in_two_parts", "streams_without_names", "two_ranks", "two_ranks_on_one_card"]
CASES += ["stages_of_two_devices", "where_parameters_lie"]

pytestmark = pytest.mark.skipif(
    not headers.toolkit() or headers.missing("gpu"), reason="no nvcc here, or no headers of cuBLAS"
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By all cases, in one process: the driver and Lamella's device are one object in it."""
    label = "//%s:%s" % tuple(STANDIN.rsplit("/", 1))
    assert bazel.build([label]) == 0
    folder = tmp_path_factory.mktemp("driver")
    for name in ("libcuda.so.1", "liblamella_cuda.so.0"):
        (folder / name).symlink_to(Path(ROOT, "bazel-bin", STANDIN).resolve())
    path = ":".join([str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    command = [sys.executable, "-B", str(Path(__file__).with_name("card.py")), str(SEED)]
    done = subprocess.run(command, env=dict(os.environ, LD_LIBRARY_PATH=path), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200)
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_on_a_card(case, said):
    assert "%s: well\n" % case in said, "LAMELLA_TEST_SEED=%d\n%s" % (SEED, said)
