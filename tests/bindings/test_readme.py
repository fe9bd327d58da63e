"""The README's programs are compiled and run as they stand there."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from bindings.cli import bazel
from readme_programs import PYTHON, ROOT, programs


@pytest.fixture(scope="module")
def library():
    assert bazel.build(["//bindings/python/native"]) == 0
    return ROOT / "bazel-bin" / "abi" / "liblamella.so.0"


def build(source, library, folder):
    (folder / "example.c").write_text(source)
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I%s" % (ROOT / "abi"), "example.c",
               str(library), "-Wl,-rpath,%s" % library.parent, "-lm", "-o", "example"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "example"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_row_parallel_example_gives_the_same_for_any_number_of_ranks(library, tmp_path, ranks):
    example = build(programs()[0], library, tmp_path)
    done = subprocess.run([ROOT / "lamella", "run", "-n", str(ranks), example], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "11 22 40 / 15 26 56" in done.stdout


def test_foreign_function_example_runs(library, tmp_path):
    example = build(programs()[1], library, tmp_path)
    done = subprocess.run([example], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == re.search(r"prints `([^`]*)` \(foreign\)", (ROOT / "README.md").read_text()).group(1)


@pytest.mark.parametrize("phrase, ranks", [(p, n) for p, (_, sizes, _) in PYTHON.items() for n in sizes])
def test_python_examples_print_what_the_readme_says(phrase, ranks, warm_python, tmp_path):
    """One rank is an interpreter that starts from nothing, as a reader's does."""
    modules, _, printed = PYTHON[phrase]
    for module in modules:
        if not importlib.util.find_spec(module):
            pytest.skip("no %s in this Python" % module)
    assert bazel.build(["//abi/...", "//bindings/..."]) == 0
    [source] = [program for program in programs("python") if phrase in program]
    (tmp_path / "example.py").write_text(source)
    # with its prefixes, `lamella run` keeps the lines of different ranks apart
    python = sys.executable if ranks == 1 else warm_python
    command = [ROOT / "lamella", "run", "-n", str(ranks), python, tmp_path / "example.py"]
    path = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    expected = 1 if "Pipeline(" in phrase else ranks  # a pipeline's loss is the last rank's to tell
    assert len(re.findall(printed, done.stdout)) == expected, done.stdout


def test_every_python_example_is_run():
    assert not programs("py")
    for source in programs("python"):
        assert sum(phrase in source for phrase in PYTHON) == 1, source


def test_cpp_example_runs(library, tmp_path):
    [source] = programs("cpp")
    (tmp_path / "example.cc").write_text(source)
    folders = ["-I%s" % (ROOT / folder) for folder in ("abi", "bindings/cpp")]
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-pedantic", "-Werror", *folders, "example.cc", library]
    subprocess.run([*command, "-Wl,-rpath,%s" % library.parent, "-o", "example"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True, timeout=60)
    text = (ROOT / "README.md").read_text()
    assert done.stdout.strip() == re.search(r"prints `([^`]*)`\. A failure is a `lamella::error`", text).group(1)


def test_readme_names_only_commands_that_exist():
    """Every `./lamella X` of the README is a command."""
    from bindings.cli.main import COMMANDS

    known = {name for name, _, _ in COMMANDS} | {"help"}
    named = set(re.findall(r"\./lamella ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named and named <= known
