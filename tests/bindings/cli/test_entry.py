"""The commands that others start: .ci/run; the demo and the tests on a machine that may lack something."""

import contextlib
import shutil
import subprocess
from argparse import ArgumentParser

import pytest

from bindings.cli import bazel, packages, test, venv
from bindings.cli.common import ROOT
from bindings.cli.demo import demo


def test_ci_runs_every_test_and_nothing_else(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    stand_in = tmp_path / "lamella"
    stand_in.write_text('#!/bin/sh\necho "lamella $@ in $PWD"; exit 7\n')
    stand_in.chmod(0o755)
    done = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout) == (7, "lamella test in %s\n" % tmp_path)


class Reached(Exception):
    pass


def test_the_demo_first_installs_what_it_lacks(monkeypatch):
    asked = []

    def build():
        raise Reached

    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that what main sets does not stay
    monkeypatch.setattr(packages, "ensure", asked.append)
    monkeypatch.setattr(demo, "build", build)
    parser = ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(Reached):
        demo.main(parser.parse_args([]))
    assert asked == ["demo"]


def test_where_the_demo_lacks_nothing_nothing_is_said_or_installed(monkeypatch, capfd):
    def install(missing):
        raise AssertionError("installs %s" % (missing,))

    everything = {package.name for package in packages.TABLE}
    monkeypatch.setattr(packages, "installed", lambda: everything)
    monkeypatch.setattr(packages, "install", install)
    assert packages.ensure("demo") == []
    assert capfd.readouterr() == ("", "")


def test_what_the_demo_lacks_is_installed_at_once(monkeypatch):
    lists = []
    everything = {package.name for package in packages.TABLE}
    monkeypatch.setattr(packages, "installed", lambda: everything - {"libffi-dev", "clang"})
    monkeypatch.setattr(packages, "install", lists.append)
    monkeypatch.setattr(packages, "forget_machine", lambda: None)
    packages.ensure("demo")
    assert [[package.name for package in found] for found in lists] == [["libffi-dev"]]


@pytest.mark.parametrize(
    "missing, order", [([], ["test"]), (["torch"], ["build", "building", "test", "built"])]
)
def test_what_needs_no_python_package_is_built_while_those_are_loaded(
    monkeypatch, capsys, missing, order
):
    done = []

    @contextlib.contextmanager
    def building(targets):
        done.append("building")
        yield
        done.append("built")

    monkeypatch.setattr(venv, "missing", lambda command: missing)
    monkeypatch.setattr(packages, "ensure", done.append)
    monkeypatch.setattr(bazel, "building", building)
    test.prepare()
    assert done == order
    assert ("building" in capsys.readouterr().err) == bool(missing)
