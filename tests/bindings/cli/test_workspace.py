"""The build on a machine with neither network, nor MPI, torch or JAX: a workspace of a few targets
under the tree's own rules."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

TARGETS = """
load("//.bazel:lamella.bzl", "lam_binary")

lam_binary(name = "plain", srcs = ["main.c"])
lam_binary(name = "with_mpi", srcs = ["main.c"], needs = ["mpi"])
lam_binary(name = "with_torch", srcs = ["main.c"], needs = ["torch"])
lam_binary(name = "with_jax", srcs = ["main.c"], needs = ["jax"])
"""
# In a network of its own that holds nothing but the loopback device, through which bazel talks.
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
COMMANDS = """
bazel --output_base="$1" build //:all && bazel --output_base="$1" query //:all
status=$?
bazel --output_base="$1" clean --expunge 2>/dev/null
exit $status
"""


def can_be_alone():
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


def programs_without_mpi(folder):
    """A PATH that holds this machine's programs, those of MPI left out."""
    folder.mkdir()
    for place in [*os.environ["PATH"].split(":"), "/usr/sbin"]:
        for path in Path(place).glob("*"):
            if not path.name.startswith("mpi") and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
    return str(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("workspace")
    tree = scratch / "tree"
    shutil.copytree(ROOT / ".bazel", tree / ".bazel")
    for name in ("WORKSPACE", ".bazelrc"):
        shutil.copy(ROOT / name, tree)
    (tree / "BUILD").write_text(TARGETS)
    (tree / "main.c").write_text("int main(void) { return 0; }\n")
    env = dict(os.environ, PATH=programs_without_mpi(scratch / "bin"), LAMELLA_PYTHON="/bin/false")
    prefix = ALONE if can_be_alone() else []
    command = [*prefix, "sh", "-c", COMMANDS, "sh", str(scratch / "out")]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not can_be_alone(), reason="no network namespace to be had")
def test_it_builds_without_a_network(built):
    assert built.returncode == 0, built.stderr


def test_targets_that_need_what_is_missing_are_left_out(built):
    assert built.stdout.split() == ["//:plain"], built.stderr


def test_one_message_names_what_is_missing(built):
    messages = [line for line in built.stderr.splitlines() if "left out" in line]
    assert messages and len(set(messages)) == 1  # Bazel may say it again for the query
    missing = messages[0].partition("not on this machine, and left out with what needs it: ")[2]
    assert {"mpi", "torch", "jax"} <= set(missing.partition(";")[0].split(", "))
    assert missing.endswith("; see ./lamella doctor")


def test_the_whole_trees_rules_load_nothing():
    """Its own targets are too many to build here: but what could load something is named in these."""
    rules = re.findall(r"^(\w+)\(", (ROOT / "WORKSPACE").read_text(), re.M)
    assert set(rules) == {"workspace", "load", "machine", "local_repository"}
    for path in [*ROOT.glob(".bazel/**/*.bzl"), *ROOT.glob("*.bzl"), *ROOT.glob("tests/**/*.bzl")]:
        loads = re.search(r"\.download|http_(archive|file)|git_repository", path.read_text())
        assert not loads, path
