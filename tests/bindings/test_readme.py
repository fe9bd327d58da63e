"""The README's programs are compiled and run as they stand there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bindings.cli import bazel

ROOT = Path(__file__).resolve().parents[2]


def programs(language="c"):
    """The README's blocks in a language, in order."""
    return re.findall(r"^```%s\n(.*?)^```$" % language, (ROOT / "README.md").read_text(), re.M | re.S)


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


@pytest.mark.parametrize("host", ["torch", "jax"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_python_examples_equal_the_unsplit_layer(host, ranks, tmp_path):
    if not importlib.util.find_spec(host):
        pytest.skip("no %s in this Python" % host)
    assert bazel.build(["//abi/...", "//bindings/torch/...", "//bindings/xla/..."]) == 0
    (tmp_path / "example.py").write_text(programs("python")[["torch", "jax"].index(host)])
    command = [ROOT / "lamella", "run", "--no-prefix", "-n", str(ranks), sys.executable, tmp_path / "example.py"]
    path = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python")}
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True") == ranks and "False" not in done.stdout


def test_readme_names_only_commands_that_exist():
    """Every `./lamella X` of the README is a command."""
    from bindings.cli.main import COMMANDS

    known = {name for name, _, _ in COMMANDS} | {"help"}
    named = set(re.findall(r"\./lamella ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named and named <= known
