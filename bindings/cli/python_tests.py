"""The Python tests: runs under pytest, in .venv, those files whose last result no longer holds.

Leaves to kept.py which those are, to counting.py what a report says.
"""

import os
import subprocess
import tempfile
import time
from collections import namedtuple

from bindings.cli import venv
from bindings.cli.common import ROOT
from bindings.cli.counting import LOG_LINES, Count, in_short, read_junit, total
from bindings.cli.kept import Results, digests

Run = namedtuple("Run", "returncode lines counts")  # counts: by file
ENDED = (0, 1)  # pytest's exit statuses when every test ran: all well, some failed
NOTHING_SELECTED = 5


def run(wanted=None, again=False):
    """wanted: only cases whose name contains it; of these nothing is kept. again: every file."""
    began, kept = time.monotonic(), {}
    if wanted:
        found = pytest(["-k", wanted, "tests"])
    else:
        results, before = Results(), digests()
        kept = {name: results.get(name, before[name]) for name in before}
        kept = {name: count for name, count in kept.items() if count and not again}
        found = pytest([name for name in before if name not in kept] if before else ["tests"])
        if found.returncode in ENDED:
            results.keep(found.counts, before, digests())
    count = total([*kept.values(), *found.counts.values()])
    if found.returncode not in (0, NOTHING_SELECTED) and not count.failed:
        count.add(Count(failed=1, failures=[in_short("python", found.lines)]))
    if count.failed:
        print("\n".join(found.lines[-LOG_LINES:]))
    print(
        "python: %s; %d files, %d from cache, %.0f s"
        % (count.line(), len(kept) + len(found.counts), len(kept), time.monotonic() - began)
    )
    return count


def pytest(arguments):
    if not arguments:
        return Run(0, [], {})
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        # one more than processors: many tests wait for a deadline or for a program to start
        "--numprocesses=%d" % (len(os.sched_getaffinity(0)) + 1),
        "--dist=loadfile",
        "--no-loadscope-reorder",  # tests/conftest.py knows which files take long
        "--override-ini=junit_family=xunit1",  # which names each case's file
    ]
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        done = subprocess.run(
            [venv.python(), "-B", "-m", "pytest", *options, "--junitxml=" + report.name, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return Run(done.returncode, done.stdout.splitlines(), read_junit(report.name))
