"""lamella test --gpu: what the packed folder holds, run on this machine's GPU.

First the C programs over device memory; then some of them again under compute-sanitizer; then the
adapters in PyTorch and JAX.
Invariant: the last line is `N passed, N failed[, N skipped]`; a machine without a GPU gets one line and
exit status 2.
Leaves what is compared with what to the programs and to tests/gpu.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bindings.cli import gpu
from bindings.cli.common import Problem
from bindings.cli.counting import Count, judge, read_junit, total

SEEDS = "1", "2", "3", "4"  # or the one that LAMELLA_TEST_SEED names
# program, filter: small, and alone: a sanitizer runs one kernel at a time, and ranks wait for each other
SANITIZED = [("ops_test", "linear"), ("ops_test", "ffn"), ("ops_test", "norm"), ("ops_test", "vocab")]
# Ranks that are threads share a card's context. CUDA may load a kernel there, at its first launch, only when all that
# runs has ended: also another rank's kernel, which waits for this very launch.
AT_ONCE = {"CUDA_MODULE_LOADING": "EAGER"}
TOOLS = {
    "memcheck": ["--leak-check", "no"],
    "racecheck": ["--racecheck-report", "all"],
}


def main(args):
    about, began, total, parts = gpu.machine(), time.monotonic(), Count(), []
    print("%s; commit %s" % (about["card"], about["commit"]), flush=True)
    for name, run in steps(args.filter):
        start = time.monotonic()
        count = run()
        total.add(count)
        parts.append({"name": name, "passed": count.passed, "failed": count.failed,
                      "skipped": count.skips, "seconds": round(time.monotonic() - start, 1)})
        print("%s: %s; %.0f s" % (name, count.line(), time.monotonic() - start), flush=True)
    document = {"machine": about, "seconds": round(time.monotonic() - began), "parts": parts}
    gpu.keep("test.json", document)
    if args.json:
        write(args.json, document)
    total.show()
    return 1 if total.failed else 0


def write(path, document):
    try:
        Path(path).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise Problem("test: cannot write %s: %s" % (path, error.strerror)) from None


def steps(wanted):
    """(name, function that gives a Count)"""
    programs = sorted((gpu.home() / "bin/tests").iterdir())
    for path in programs:
        yield path.name, lambda path=path: run_program(path, wanted)
    if wanted:
        return
    for tool in TOOLS:
        yield tool, lambda tool=tool: run_sanitizer(tool)
    for host in ("torch", "jax"):
        yield host, lambda host=host: run_host(host)


def run_program(path, wanted):
    count, given = Count(), os.environ.get("LAMELLA_TEST_SEED")
    for seed in [given] if given else SEEDS:
        status, log = gpu.run([path, *filter(None, [wanted])], 300, LAMELLA_TEST_SEED=seed, **AT_ONCE)
        count.add(judge("%s, seed %s" % (path.name, seed), log, status == 0, "status %d" % status))
    return count


def run_sanitizer(tool):
    """Each program under it is one case: it passes where the tool finds nothing and all tests pass."""
    count = Count()
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if not found:
        count.skipped, count.skips = 1, ["skip %s: there is no compute-sanitizer here" % tool]
        return count
    for program, wanted in SANITIZED:
        command = [found, "--tool", tool, *TOOLS[tool], "--error-exitcode", "9"]
        command += [gpu.home() / "bin/tests" / program, wanted]
        status, log = gpu.run(command, 240, LAMELLA_TEST_SEED="1", LAMELLA_TEST_RANKS="1")
        ran = re.search(r"^([1-9]\d*) passed, 0 failed", log, re.M)
        if status == 0 and ran:
            print("ok %s.%s_%s" % (tool, program, wanted))
            count.passed += 1
        else:
            print("FAIL %s.%s_%s (status %d)" % (tool, program, wanted, status))
            print("\n".join(line for line in log.splitlines() if not line.startswith("ok "))[-6000:])
            count.failed += 1
    return count


def run_host(host):
    """tests/gpu/gpu_<host>.py under pytest, in the interpreter that has torch."""
    has = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ['pytest', %r])))"
    if subprocess.run([gpu.python(), "-c", has % host], capture_output=True).returncode != 0:
        count = Count(skipped=1)
        count.skips = ["skip %s: %s has no %s, or no pytest" % (host, gpu.python(), host)]
        return count
    files = sorted((gpu.home() / "tests/gpu").glob("gpu_%s.py" % host))
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        options = ["-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "--junitxml=" + report.name]
        status, log = gpu.run([gpu.python(), "-B", "-m", "pytest", *options, *files], 1200,
                              **gpu.host_libraries(), **AT_ONCE)
        count = total(read_junit(report.name).values())
    if status not in (0, 5) and not count.failed:
        count.failed = 1
    if count.failed:
        print(log[-12000:])
    return count
