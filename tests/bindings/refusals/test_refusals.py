"""Nothing that a Python program hands over ends its interpreter: it gets an exception."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("wrong_calls.py")
SEED = os.environ.get("LAMELLA_TEST_SEED") or str(random.randrange(2**31))


@pytest.mark.parametrize("part", ["neutral", "rows", "torch", "jax"])
def test_the_interpreter_survives_wrong_calls(part):
    print("LAMELLA_TEST_SEED=%s" % SEED)
    env = dict(os.environ, PYTHONPATH=str(ROOT / "bindings/python"), JAX_PLATFORMS="cpu")
    done = subprocess.run(
        [sys.executable, "-B", PROGRAM, part, SEED], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.splitlines()[-1] == "survived"
