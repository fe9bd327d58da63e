"""Builds the library once, and lets tests import lamella from the checkout."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bindings/python")]

pytest.importorskip("numpy", reason="numpy is not installed: ./lamella setup")


def build():
    from bindings.cli import bazel

    assert bazel.build(["//bindings/python/native"]) == 0, "the library does not build"


build()  # before test modules import lamella
