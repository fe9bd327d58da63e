"""Builds the adapter once, lets tests import lamella from the checkout, and gives JAX four devices.

Invariant: JAX is told so before it starts.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "bindings/python")]
TARGETS = ["//bindings/python/native", "//bindings/xla:liblamella_xla.so"]
DEVICES = "--xla_force_host_platform_device_count=4"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " " + DEVICES).strip()
pytest.importorskip("jax", reason="jax is not installed: ./lamella setup")


def build():
    from bindings.cli import bazel

    assert bazel.build(TARGETS) == 0, "the JAX adapter does not build"


build()  # before test modules import lamella.jax
