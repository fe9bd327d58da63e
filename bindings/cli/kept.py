"""Python tests that need not run again: a file of them passed, and nothing that it reads has changed.

What a file reads is taken to be the machine (its processors, GPUs, Debian packages), .venv, and every
file of the tree that git does not ignore, but for what NOT_READ names. The libraries are not looked
at: they come of the tree's files.
Invariant: only a file whose every case passed or was skipped is kept, and only if nothing changed
while it ran.
"""

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from fnmatch import fnmatch

from bindings.cli.common import ROOT
from bindings.cli.counting import Count
from bindings.cli.venv import HOME

KEPT = ROOT / "build/python-tests.json"

# Patterns of what a file does not read -> of the files that read it all the same.
NOT_READ = {
    "tests/*/test_*.py": (),  # but each file itself
    "*.md": ("*/test_readme.py", "*/test_gpu.py", "*/test_install.py", "*/wheel/*"),
    "tests/unit/*": (),
    "tests/conformance/*": (),
    "tests/distributed/*": ("*/test_streams.py",),
    "tests/fuzz/*": (),
    "tests/bench/*": ("*/test_bench*.py", "*/test_gpu.py"),
}


class Results:
    """The counts of the last run's files, by the files' digests."""

    def __init__(self, path=KEPT):
        self.path = path
        try:
            self.found = json.loads(path.read_text())
        except (OSError, ValueError):
            self.found = {}

    def get(self, name, digest):
        """The Count that a file ended with when it had this digest, or None."""
        entry = self.found.get(name)
        if not digest or not entry or entry["digest"] != digest:
            return None
        count = Count(entry["passed"], 0, entry["skipped"])
        count.skips = entry["skips"]
        return count

    def keep(self, counts, before, after):
        """counts: a Count for each file that ran; before, after: all files' digests then."""
        self.found = {name: entry for name, entry in self.found.items() if name in after}
        for name, count in counts.items():
            self.found.pop(name, None)
            if not count.failed and before.get(name) and before[name] == after.get(name):
                self.found[name] = {
                    "digest": after[name],
                    "passed": count.passed,
                    "skipped": count.skipped,
                    "skips": count.skips,
                }
        self.path.parent.mkdir(exist_ok=True)
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps(self.found, indent=1))
        scratch.rename(self.path)  # whole or not at all


def digests(root=ROOT):
    """A digest for each file of Python tests, named by its path; none where git does not list the tree."""
    tree = contents(root)
    tests = [path for path in tree if fnmatch(path, "tests/*/test_*.py")]
    around = machine()
    return {path: digest(around, [(p, tree[p]) for p in tree if is_read(path, p)]) for path in tests}


def is_read(test, path):
    skipped = [but for pattern, but in NOT_READ.items() if fnmatch(path, pattern)]
    return path == test or all(any(fnmatch(test, reader) for reader in but) for but in skipped)


def contents(root):
    """The tree's files, each with a digest of its content and whether it may be run."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    paths = sorted(set(filter(None, listed.stdout.split("\0")))) if listed.returncode == 0 else []
    return {path: content(root / path) for path in paths}


def content(path):
    try:
        if path.is_symlink():
            return os.readlink(path)
        return "%s %d" % (hashlib.sha256(path.read_bytes()).hexdigest(), os.access(path, os.X_OK))
    except OSError as error:  # deleted, but git still has it
        return error.strerror


def machine():
    """What tests find outside of the tree, as far as it is cheaply told."""
    variables = {k: v for k, v in os.environ.items() if re.match("PATH$|LAMELLA_|CC$|CXX$|CUDA", k)}
    return [
        platform.platform(),
        len(os.sched_getaffinity(0)),
        sorted(set(re.findall(r"^flags.*", read("/proc/cpuinfo"), re.M))),
        sorted(glob.glob("/dev/nvidia*")),
        [shutil.which(program) for program in ("nvcc", "mpirun", "nvidia-smi")],
        hashlib.sha256(read("/var/lib/dpkg/status").encode()).hexdigest(),
        read(HOME / "lamella.txt"),
        sorted(os.path.basename(p) for p in glob.glob("%s/lib/python*/site-packages/*" % HOME)),
        sorted(variables.items()),
    ]


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def digest(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
