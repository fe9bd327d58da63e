"""A wheel made of the checkout, and a fresh environment that it is installed in, beside .venv's
torch and jax (which would take gigabytes each)."""

import fcntl
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from wheel_commands import ROOT, pip, run

SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """As pip builds it: in an isolated environment, and without any package index; once for all of
    pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            pip("wheel", "--no-index", "--no-deps", "--wheel-dir", folder, ROOT)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def site(python):
    """The folder of that environment's packages."""
    return Path(run(python, "-c", SITE).strip())


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """The interpreter of the environment that the wheel is installed in."""
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin/python"
    pip("--python", python, "install", "--no-index", "--no-deps", wheel)
    (Path(run(python, "-c", SITE).strip()) / "hosts.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
