"""A wheel made of the checkout, and a fresh environment that it is installed in, beside .venv's
torch and jax (which would take gigabytes each)."""

import sys
import sysconfig
from pathlib import Path

import pytest

from wheel_commands import ROOT, pip, run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """As pip builds it: in an isolated environment, and without any package index."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--wheel-dir", folder, ROOT)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """The interpreter of the environment that the wheel is installed in."""
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin/python"
    pip("--python", python, "install", "--no-index", "--no-deps", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "hosts.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
