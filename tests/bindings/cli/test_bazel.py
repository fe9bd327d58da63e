"""What the commands pass on of what Bazel says, and a build beside something else."""

import os
import stat
import sys

import pytest

from bindings.cli import bazel

WAITS = [
    "Another command (pid=23) is running. Waiting for it to complete on the server...",
    "Another command holds the client lock: ",
    "pid=23",
    "owner=client",
    "cwd=/somewhere",
    "Waiting for it to complete...",
    "Starting local Bazel server and connecting to it...",
]
ERROR = "ERROR: BUILD:3:9: no such target"


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A bazel in the real one's place, which says all of this."""
    program = tmp_path / "bazel"
    program.write_text("#!/bin/sh\ncat >&2 <<END\n%s\nEND\nexit 1\n" % "\n".join([*WAITS, ERROR]))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_a_build_passes_errors_on_and_not_that_it_had_to_wait(client, capsys):
    assert bazel.build(["//nosuch"]) == 1
    assert capsys.readouterr().err == ERROR + "\n"


def test_who_sits_at_a_terminal_is_told_of_the_wait(client, capfd, monkeypatch):
    monkeypatch.setattr(bazel.sys.stderr, "isatty", lambda: True, raising=False)
    assert bazel.build(["//nosuch"]) == 1
    assert capfd.readouterr().err.splitlines() == [*WAITS, ERROR]


BUILDS_FOREVER = """#!%s
import pathlib, signal
try:
    print("noise", flush=True)
    pathlib.Path(%r).write_text("began")
    signal.alarm(60)
    signal.pause()
except KeyboardInterrupt:
    pathlib.Path(%r).touch()
"""


def test_a_build_beside_what_fails_is_silent_and_ends_with_it(tmp_path, monkeypatch, capfd):
    began, interrupted, program = tmp_path / "began", tmp_path / "interrupted", tmp_path / "bazel"
    os.mkfifo(began)
    program.write_text(BUILDS_FOREVER % (sys.executable, str(began), str(interrupted)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ZeroDivisionError), bazel.building(["//..."]):
        assert began.read_text() == "began"
        1 / 0
    assert interrupted.exists()
    assert capfd.readouterr() == ("", "")
