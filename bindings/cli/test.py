"""lamella test: every test of the tree, counted one by one.

The C tests run through Bazel three times: as built for use, with the address and undefined
behaviour sanitizers, and (those that use threads) with the thread sanitizer; clang must build
everything too. Then the Python tests run under pytest, in .venv. What did not change is answered
from Bazel's cache, or for Python from kept.py's, and counts too.
Invariant: the last line is `N passed, N failed[, N skipped]`, and what could not be built or ended
early counts as failed; whatever failed is named right above that line, however long ago it was.
"""

import os
import re
import subprocess
import tempfile
import time
from collections import namedtuple

from bindings.cli import bazel, gpu_test, packages, python_tests, venv
from bindings.cli.common import ROOT, say
from bindings.cli.counting import Count, judge

Config = namedtuple("Config", "name options")
CONFIGS = [
    Config("as built", []),
    Config("asan", ["--config=asan", "--build_tests_only", "--test_tag_filters=-nosan"]),
    Config("tsan", ["--config=tsan", "--build_tests_only", "--test_tag_filters=threads,-nosan"]),
]

# Half as many again as there are processors: many tests wait for a deadline or for one another.
AT_ONCE = ["--local_cpu_resources=HOST_CPUS*1.5"]


def add_arguments(parser):
    parser.add_argument(
        "filter", nargs="?", help="only tests whose area.claim contains this; no sanitizers"
    )
    parser.add_argument("--fast", action="store_true", help="no sanitizers")
    parser.add_argument(
        "--again", action="store_true", help="also what passed and has not changed since"
    )
    parser.add_argument(
        "--gpu", action="store_true", help="what ./lamella pack-gpu packed, on this machine's GPU"
    )
    parser.add_argument("--json", metavar="FILE", help="with --gpu: also write what was found to FILE")


def main(args):
    if args.gpu:
        return gpu_test.main(args)
    prepare()
    total = Count()
    if args.filter:
        total.add(run_filtered(args.filter))
    else:
        for config in CONFIGS[:1] if args.fast else CONFIGS:
            total.add(run_config(config, args.again))
        if not args.fast:
            total.add(build_with_clang())
    total.add(python_tests.run(args.filter, args.again))
    total.show()
    return 1 if total.failed else 0


def prepare():
    """Installs what is missing. Python packages come over a network: meanwhile what needs none of them
    is compiled."""
    if not venv.missing("test"):
        packages.ensure("test")
        return
    packages.ensure("build")
    with bazel.building(["//..."]):
        packages.ensure("test")
        say("building goes on")


def run_config(config, again=False):
    began, count = time.monotonic(), Count()
    print("%s: building and testing" % config.name, flush=True)
    options = [*config.options, *AT_ONCE, "--jobs=%d" % jobs()]
    options += ["--nocache_test_results"] if again else []
    outcome = bazel.test(["//..."], options)
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


def jobs():
    """More than there are processors, of which Bazel gives each job its share: what waits until it can
    have two must not keep the next from starting."""
    return 4 * len(os.sched_getaffinity(0))


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
