"""Test cases that passed, failed or were skipped, read from what test programs and pytest wrote.

Invariant: a program that ended badly has a failed case, even where it named none.
Leaves running them to test.py and gpu_test.py.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

LOG_LINES = 200  # of a program that failed, where it failed
LAST_LINES = 12  # of it, at the end of everything


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


def total(counts):
    together = Count()
    for count in counts:
        together.add(count)
    return together


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


def read_junit(path):
    """A Count for each file, by its path in the tree ("" where pytest names none)."""
    counts = {}
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except ElementTree.ParseError:
        return counts
    for case in cases:
        counts.setdefault(case.get("file", ""), Count()).add(judge_case(case))
    return counts


def judge_case(case):
    skip, failure = case.find("skipped"), case.find("failure")
    failure = case.find("error") if failure is None else failure
    if failure is not None:
        name = "python: %s.%s" % (case.get("classname"), case.get("name"))
        return Count(failed=1, failures=[in_short(name, (failure.text or "").splitlines())])
    if skip is None:
        return Count(passed=1)
    count = Count(skipped=1)
    count.skips = ["skip %s: %s" % (case.get("name"), skip.get("message"))]
    return count
