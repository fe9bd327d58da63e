"""The README's Python programs with the installed package, and away from the checkout."""

import importlib.util
import os
import re

import pytest

from readme_programs import PYTHON, programs
from wheel_commands import run

THE_WHEELS = """
import lamella
from lamella import library
for path in (lamella.__file__, library.path(library.NAME)):
    assert path.startswith(%r), path
"""


@pytest.mark.parametrize("phrase", PYTHON)
def test_the_readmes_programs_run_with_the_installed_package(phrase, python, site, warm_python, tmp_path):
    modules, sizes, printed = PYTHON[phrase]
    for module in modules:
        if not importlib.util.find_spec(module):
            pytest.skip("no %s in this Python" % module)
    [source] = [program for program in programs("python") if phrase in program]
    (tmp_path / "example.py").write_text(source + THE_WHEELS % str(site))
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "lamella", "run", "-n", sizes[0], warm_python, "example.py"]
    said = run(*command, cwd=tmp_path, env=env)
    assert len(re.findall(printed, said)) == (1 if "Pipeline(" in phrase else sizes[0]), said
