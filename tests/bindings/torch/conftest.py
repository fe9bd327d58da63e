"""Builds the adapter once, and lets tests import lamella from the checkout."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bindings/python")]
TARGETS = ["//bindings/python/native", "//bindings/torch:lamella_torch.so"]

torch = pytest.importorskip("torch", reason="torch is not installed: ./lamella setup")



def build():
    from bindings.cli import bazel

    assert bazel.build(TARGETS) == 0, "the torch adapter does not build"


build()  # before test modules import lamella.torch
