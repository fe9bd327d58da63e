"""Builds what the hosts load, once."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT)]
TARGETS = ["//bindings/python/native", "//bindings/torch:lamella_torch.so"]
TARGETS += ["//bindings/xla:liblamella_xla.so"]

for host in ("numpy", "torch", "jax"):
    pytest.importorskip(host, reason=host + " is not installed: ./lamella setup")


def build():
    from bindings.cli import bazel

    assert bazel.build(TARGETS) == 0, "the adapters do not build"


build()
