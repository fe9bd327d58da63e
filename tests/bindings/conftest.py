"""What tests of several folders share."""

import os

import pytest


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """An interpreter that has PyTorch loaded, shared by all of pytest's processes (warm.py)."""
    import warm

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with warm.program(folder) as path:
        yield path
