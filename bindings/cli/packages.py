"""Debian packages: which are needed for what, which are missing, and their installation.

Invariant: nothing is installed that this table does not name, and where nothing is missing, apt is
not called at all.
Leaves Python packages to venv.py, NVIDIA's headers to headers.py.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

from bindings.cli import headers, venv
from bindings.cli.common import Problem, say

Package = namedtuple("Package", "name what needed_by")

# Commands need what is listed for them and all that "build" needs.
TABLE = [
    Package("gcc", "C compiler", "build"),
    Package("g++", "C++ compiler", "build"),
    Package("libc6-dev", "C library headers", "build"),
    Package("bazel-bootstrap", "build system", "build"),
    Package("bazel-rules-java", "build rules", "build"),
    Package("bazel-rules-proto", "build rules", "build"),
    Package("bazel-skylib", "build rules", "build"),
    Package("bazel-platforms", "build rules", "build"),
    Package("libdlpack-dev", "tensor description", "build"),
    Package("libffi-dev", "calls to foreign functions", "build"),
    Package("libdnnl-dev", "oneDNN, matrix products", "build"),
    Package("clang", "second compiler", "test"),
    Package("abigail-tools", "ABI comparison", "test"),
    Package("cmake", "other people's C++ projects, built against an installation", "test"),
    Package("pkg-config", "other people's C projects, the same", "test"),
    Package("python3-venv", "Python environments", "test bench hosts"),
    Package("python3-dev", "Python's headers, for what torch.compile writes", "test bench"),
    Package("mpich", "MPICH's launcher", "test"),
    Package("libopenmpi-dev", "Open MPI, the peer to compare with", "test bench"),
    Package("openmpi-bin", "Open MPI's launcher", "test bench"),
]

APT = (
    "env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -o Dpkg::Use-Pty=0"
    " -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2"
).split()
NO_NETWORK = re.compile(
    r"Temporary failure resolving|Could not (connect|resolve)|Unable to connect|Failed to fetch|"
    r"Network is unreachable|Connection (failed|timed out|refused)"
)
STALE_LISTS = re.compile(
    r"Unable to locate package|has no installation candidate|404 +Not Found|Failed to fetch"
)


def needed(command):
    """Rows for one command, or all rows for "all"."""
    return [p for p in TABLE if command == "all" or {"build", command} & set(p.needed_by.split())]


def installed():
    """Names of all Debian packages here; empty where there is no dpkg."""
    if not shutil.which("dpkg-query"):
        return set()
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]
    listing = subprocess.run(query, capture_output=True, text=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return {name for status, name in rows if status == "installed"}


def missing(command):
    present = installed()
    return [p for p in needed(command) if p.name not in present]


def install_line(packages):
    return "apt-get install -y --no-install-recommends " + " ".join(p.name for p in packages)


def ensure(command):
    """Installs what `command` lacks, Python packages too. Gives what was installed."""
    packages = missing(command)
    if packages:
        install(packages)
    done = packages + venv.ensure(command) + headers.ensure(command)
    if done:
        forget_machine()
    return done


def install(packages):
    as_root = root_prefix(packages)
    say("installing %d Debian package(s), once" % len(packages))
    if not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
        update(as_root)
    status, log = apt_install(as_root, packages)
    if status != 0 and STALE_LISTS.search(log):
        update(as_root)
        status, log = apt_install(as_root, packages)
    if status != 0:
        raise Problem(explain(log, packages))


def root_prefix(packages):
    if not shutil.which("apt-get"):
        raise Problem(
            "there is no apt-get here (Lamella's setup knows Debian); install these yourself: "
            + " ".join("%s (%s)" % (p.name, p.what) for p in packages)
        )
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        question = [] if sys.stdin.isatty() else ["-n"]
        if subprocess.run(["sudo", *question, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            return ["sudo"]
    raise Problem(
        "packages are missing, and only root may install them; ask an administrator for:\n  "
        + install_line(packages)
    )


def run_apt(as_root, arguments, each_line=lambda line: None):
    """Gives apt-get's exit status and all it printed; `each_line` sees it as it comes."""
    process = subprocess.Popen(
        [*as_root, *APT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        each_line(line)
    return process.wait(), "".join(lines)


def update(as_root):
    say("  reading the lists of packages")
    status, log = run_apt(as_root, ["update"])
    if status != 0 or NO_NETWORK.search(log):
        raise Problem(explain(log, []))


def apt_install(as_root, packages):
    what = {p.name: p.what for p in packages}

    def show(line):
        size = re.match(r"Need to get (.*?)(/.*)? of archives", line)
        done = re.match(r"Setting up ([^ :]+)", line)
        if size:
            say("  loading " + size.group(1))
        elif done and done.group(1) in what:
            say("  %-18s %s" % (done.group(1), what[done.group(1)]))

    return run_apt(as_root, ["install", "-y", "--no-install-recommends", *what], show)


def explain(log, packages):
    if NO_NETWORK.search(log):
        return "the package servers cannot be reached: is there a network? Then try again"
    errors = [line.strip() for line in log.splitlines() if line.startswith(("E:", "dpkg: error"))]
    return "apt-get failed: %s%s" % (
        " ".join(errors[-2:]) or "no reason given",
        "\n  tried: " + install_line(packages) if packages else "",
    )


def forget_machine():
    """Bazel looks what the machine has when its server starts; a running one misses what is new."""
    if shutil.which("bazel"):
        from bindings.cli import bazel

        bazel.shutdown()
