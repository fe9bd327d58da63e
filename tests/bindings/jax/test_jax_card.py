"""Operators' handlers and pipelines in JAX on a GPU: emulated, see card.py. tests/gpu's run on one."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lamella import library

from bindings.cli import bazel, headers
from bindings.cli.common import ROOT

SEED = int(os.environ.get("LAMELLA_TEST_SEED", secrets.randbits(32)))
STANDIN = "tests/bindings/jax/libcuda_standin.so"
CASES = ["calls_of_operators", "a_token_is_written_on_the_stream", "one_rank", "in_two_parts"]
CASES += ["streams_without_names", "two_ranks", "two_ranks_on_one_card", "stages_of_two_devices"]
CASES += ["where_parameters_lie"]

pytestmark = pytest.mark.skipif(
    not headers.all_there(), reason="no nvcc here, or no headers of cuBLAS"
)


def install(folder):
    """The package, with the stand-in beside the library, by both of its names."""
    package = ROOT / "bindings/python/lamella"
    shutil.copytree(package, folder / "lamella", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    own, standin = folder / "lamella/lib", (ROOT / "bazel-bin" / STANDIN).resolve()
    own.mkdir()
    for name, place in library.BUILT.items():
        (own / name).symlink_to((ROOT / place / name).resolve())
    (own / "liblamella_cuda.so.0").unlink()
    for name in ("libcuda.so.1", "liblamella_cuda.so.0"):
        (own / name).symlink_to(standin)
    return own


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By all cases, in one process."""
    assert bazel.build(["//%s:%s" % tuple(STANDIN.rsplit("/", 1))]) == 0
    folder = tmp_path_factory.mktemp("card")
    loaded = [str(install(folder)), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = dict(os.environ, LD_LIBRARY_PATH=":".join(loaded), PYTHONPATH=str(folder))
    command = [sys.executable, "-B", str(Path(__file__).with_name("card.py")), str(SEED)]
    done = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=400)
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_on_a_card(case, said):
    assert "case %s: well\n" % case in said, "LAMELLA_TEST_SEED=%d\n%s" % (SEED, said)


def test_all_cases_are_listed(said):
    assert re.findall(r"^case (\w+): ", said, re.M) == CASES, said
