"""Builds the torch adapter once, lets tests import lamella from the checkout, and keeps Hugging
Face's libraries from looking for a network."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bindings/python")]
TARGETS = ["//bindings/python/native", "//bindings/torch:lamella_torch.so"]
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")

torch = pytest.importorskip("torch", reason="torch is not installed: ./lamella setup")
pytest.importorskip("transformers", reason="transformers is not installed: ./lamella setup")
torch.set_num_threads(1)


def build():
    from bindings.cli import bazel

    assert bazel.build(TARGETS) == 0, "the torch adapter does not build"


build()  # before test modules import lamella.torch
