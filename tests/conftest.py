"""For all Python tests.

A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C: they
hear it as at a terminal. torch.compile starts no processes to compile in: every processor has tests
of its own to run. Nor does it try out vector instructions or compile its headers ahead: that takes
some twenty seconds, and its loops are over a hundred numbers. Files that take long come first
(--no-loadscope-reorder keeps that), so that no worker ends alone with one.
"""

import os
import signal
from pathlib import Path

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")

LONG = (
    "models_smollm2", "readme", "demo_hosts", "gpu", "torch_ranks", "demo", "torch_pipeline",
    "jax_processes", "schedule", "wheel", "models_load", "workspace", "torch_groups", "jax_groups",
    "jax_pipeline",
)


def pytest_collection_modifyitems(items):
    there = {path.stem.removeprefix("test_") for path in Path(__file__).parent.rglob("test_*.py")}
    if not there.issuperset(LONG):
        raise pytest.UsageError("LONG: no test_%s.py is there" % min({*LONG} - there))
    items.sort(key=lambda item: place(item.path.stem.removeprefix("test_")))


def place(name):
    return LONG.index(name) if name in LONG else len(LONG)
