"""`bazel run //:install` as a user types it; what it writes is install.sh's to test."""

import os
import subprocess

from bindings.cli.common import ROOT


def test_a_relative_prefix_is_relative_to_where_bazel_was_called(tmp_path):
    here = ROOT / "abi"
    prefix = os.path.relpath(tmp_path / "prefix", here)
    command = ["bazel", "run", "//:install", "--", "--prefix", prefix]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "prefix/lib/liblamella.so") in done.stdout.splitlines()
    assert (tmp_path / "prefix/include/lamella.h").read_text() == (here / "lamella.h").read_text()
