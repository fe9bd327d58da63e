"""lamella test: every test of the tree, counted one by one.

The C tests run through Bazel three times: as built for use, with the address and undefined
behaviour sanitizers, and (those that use threads) with the thread sanitizer; clang must build
everything too. Then the Python tests run under pytest, in .venv. What did not change is answered
from Bazel's cache, and counts too.
Invariant: the last line is `N passed, N failed[, N skipped]`, and what could not be built or ended
early counts as failed; whatever failed is named right above that line, however long ago it was.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

from bindings.cli import bazel, packages, venv
from bindings.cli.common import ROOT

Config = namedtuple("Config", "name options")
CONFIGS = [
    Config("as built", []),
    Config("asan", ["--config=asan", "--build_tests_only", "--test_tag_filters=-nosan"]),
    Config("tsan", ["--config=tsan", "--build_tests_only", "--test_tag_filters=threads,-nosan"]),
]
LOG_LINES = 200  # of a program that failed, where it failed
LAST_LINES = 12  # of it, at the end of everything


def add_arguments(parser):
    parser.add_argument(
        "filter", nargs="?", help="only tests whose area.claim contains this; no sanitizers"
    )
    parser.add_argument("--fast", action="store_true", help="no sanitizers")
    parser.add_argument(
        "--gpu", action="store_true", help="what ./lamella pack-gpu packed, on this machine's GPU"
    )
    parser.add_argument("--json", metavar="FILE", help="with --gpu: also write what was found to FILE")


def main(args):
    if args.gpu:
        from bindings.cli import gpu_test

        return gpu_test.main(args)
    packages.ensure("test")
    total = Count()
    if args.filter:
        total.add(run_filtered(args.filter))
    else:
        for config in CONFIGS[:1] if args.fast else CONFIGS:
            total.add(run_config(config))
        if not args.fast:
            total.add(build_with_clang())
    total.add(run_python(args.filter))
    total.show()
    return 1 if total.failed else 0


class Count:
    """How many passed, failed and were skipped; one line for each skip, a few for what failed."""

    def __init__(self, passed=0, failed=0, skipped=0, failures=()):
        self.passed, self.failed, self.skipped, self.skips = passed, failed, skipped, []
        self.failures = list(failures)

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.skips += [line for line in other.skips if line not in self.skips]
        self.failures += other.failures

    def show(self):
        """The end of a run, for whoever reads no more than that."""
        for line in [*self.skips, *self.failures, self.line()]:
            print(line)
        sys.stdout.flush()

    def line(self):
        return "%d passed, %d failed%s" % (
            self.passed,
            self.failed,
            ", %d skipped" % self.skipped if self.skipped else "",
        )


def run_config(config):
    began, count = time.monotonic(), Count()
    print("%s: building and testing" % config.name, flush=True)
    jobs = max(1, len(os.sched_getaffinity(0)) // 2)  # a test is often several busy ranks
    outcome = bazel.test(["//..."], [*config.options, "--local_test_jobs=%d" % jobs])
    for test in outcome.tests:
        name = "%s: %s" % (config.name, test.target)
        count.add(judge(name, test.log, test.status == "PASSED", test.status.lower()))
    broken = outcome.broken or ([] if outcome.status in bazel.BUILT else ["bazel: something above"])
    if broken:
        print(outcome.output.rstrip())
    for target in broken:
        line = "FAIL %s: %s does not build" % (config.name, target)
        print(line)
        count.add(Count(failed=1, failures=[line]))
    print(
        "%s: %s; %d programs, %d from cache, %.0f s"
        % (
            config.name,
            count.line(),
            len(outcome.tests),
            sum(test.cached for test in outcome.tests),
            time.monotonic() - began,
        )
    )
    return count


def judge(name, log, ended_well, how):
    """Counts one test program's cases; prints what it said where one failed."""
    count = Count(*[len(re.findall("^%s " % word, log, re.M)) for word in ("ok", "FAIL", "skip")])
    count.skips = re.findall("^skip .*", log, re.M)
    if ended_well and not (count.passed or count.failed or count.skipped):
        count.passed = (
            0 if re.search("^0 passed, 0 failed$", log, re.M) else 1
        )  # a program without our harness
    if not ended_well and not count.failed:
        count.failed = 1
    if count.failed:
        lines = log.splitlines()
        lines = [line for line in lines if not line.startswith("ok ") or line == lines[-1]]
        print("\n".join(["---- %s (%s)" % (name, how), *lines[-LOG_LINES:]]))
        count.failures = [in_short("%s (%s)" % (name, how), lines)]
    return count


def in_short(name, lines):
    """What failed, and what was said last: the claims, where they are not among that."""
    claims = [line for line in lines[:-LAST_LINES] if line.startswith("FAIL ")]
    return "\n".join(["---- " + name, *claims, *lines[-LAST_LINES:]])


def build_with_clang():
    began = time.monotonic()
    builds = bazel.build(["//..."], ["--config=clang", "--keep_going"]) == 0
    print(
        "clang: %s; %.0f s" % ("builds everything" if builds else "FAIL", time.monotonic() - began),
        flush=True,
    )
    if builds:
        return Count(passed=1)
    return Count(failed=1, failures=["FAIL clang does not build everything"])


def run_filtered(wanted):
    """The matching cases, by running the programs directly.

    Bazel keeps one result for each test: a filtered one would push out that of the whole test.
    """
    if bazel.build(["//..."]) != 0:
        return Count(failed=1, failures=["FAIL something does not build"])
    count, bin_dir = Count(), bazel.info("bazel-bin")
    for label in bazel.query("tests(//...)"):
        path = os.path.join(bin_dir, label.lstrip("/").replace(":", "/"))
        runfiles = path + ".runfiles/lamella"
        with tempfile.TemporaryDirectory() as scratch:
            env = dict(
                os.environ,
                TEST_TMPDIR=scratch,
                TEST_SRCDIR=path + ".runfiles",
                TEST_WORKSPACE="lamella",
            )
            done = subprocess.run(
                [path, wanted],
                cwd=runfiles if os.path.isdir(runfiles) else ROOT,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                errors="replace",
            )
        for line in re.findall("^ok .*", done.stdout, re.M):
            print(line)
        count.add(judge(label, done.stdout, done.returncode == 0, "status %d" % done.returncode))
    return count


def run_python(wanted):
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        done = subprocess.run(
            [
                venv.python(),
                "-B",
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--numprocesses=%d" % len(os.sched_getaffinity(0)),
                "--dist=loadfile",
                "--junitxml=" + report.name,
                *(["-k", wanted] if wanted else []),
                "tests",
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        count = read_junit(report.name)
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 5) and not count.failed:  # 5: no test was selected
        count.add(Count(failed=1, failures=[in_short("python", lines)]))
    if count.failed:
        print("\n".join(lines[-LOG_LINES:]))
    print("python: %s; %.0f s" % (count.line(), time.monotonic() - began))
    return count


def read_junit(path):
    count = Count()
    try:
        cases = ElementTree.parse(path).iter("testcase")
    except ElementTree.ParseError:
        return count
    for case in cases:
        skip, failure = case.find("skipped"), case.find("failure")
        failure = case.find("error") if failure is None else failure
        if failure is not None:
            name = "python: %s.%s" % (case.get("classname"), case.get("name"))
            count.add(Count(failed=1, failures=[in_short(name, (failure.text or "").splitlines())]))
        elif skip is not None:
            count.skipped += 1
            count.skips.append("skip %s: %s" % (case.get("name"), skip.get("message")))
        else:
            count.passed += 1
    return count
