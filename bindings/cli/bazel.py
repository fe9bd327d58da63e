"""Calls Bazel and reads what it did from its own event file, not from what it prints."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from urllib.parse import unquote, urlparse

from bindings.cli.common import ROOT, Problem

TestRun = namedtuple("TestRun", "target status log cached")
Outcome = namedtuple("Outcome", "status tests broken output")  # broken: targets that do not build
BUILT = (0, 3, 4)  # exit statuses: all well, some test failed, no test there

# What Bazel tells whoever sits and waits: that another command is at work, whose (the lines after
# it), or that its server starts.
WAITING = re.compile(
    r"Another command |Waiting for it to complete|(pid|owner|cwd|tty)="
    r"|Starting local |Extracting |\.\.\. still trying to connect "
)


def call(arguments, **kwargs):
    try:
        return subprocess.run(["bazel", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, **kwargs)
    except FileNotFoundError:
        raise Problem("bazel is missing; run ./lamella setup") from None


def shutdown():
    call(["shutdown"], capture_output=True)


def build(targets, options=()):
    """Errors go to stderr as Bazel prints them; where that is no terminal, no word of waiting does."""
    command = ["build", "--ui_event_filters=-info,-debug", *options, *targets]
    if sys.stderr.isatty():
        return call(command).returncode
    done = call(command, stderr=subprocess.PIPE, text=True, errors="replace")
    said = done.stderr.splitlines(keepends=True)
    sys.stderr.writelines(line for line in said if not WAITING.match(line))
    sys.stderr.flush()
    return done.returncode


@contextlib.contextmanager
def building(targets):
    """Builds beside what the block does, without a word: the build that comes after tells what is wrong.
    A block that fails ends it."""
    quiet = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)
    process = subprocess.Popen(["bazel", "build", "--keep_going", *targets], cwd=ROOT, **quiet)
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGINT)
        raise
    finally:
        process.wait()


def query(expression):
    found = call(["query", "--output=label", expression], capture_output=True, text=True)
    if found.returncode != 0:
        raise Problem("bazel query failed:\n" + found.stderr.strip())
    return found.stdout.split()


def info(key):
    return call(["info", key], capture_output=True, text=True).stdout.strip()


def test(targets, options=()):
    """Builds and runs the tests; what is unchanged is answered from Bazel's cache."""
    with tempfile.NamedTemporaryFile(suffix=".json") as events:
        done = call(
            [
                "test",
                "--keep_going",
                "--ui_event_filters=-info,-debug",
                "--test_output=summary",
                "--test_summary=none",
                "--build_event_json_file=" + events.name,
                *options,
                *targets,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        lines = [json.loads(line) for line in open(events.name) if line.strip()]
    return Outcome(done.returncode, read_tests(lines), read_broken(lines), done.stdout)


def read_tests(events):
    tests = {}
    for event in events:
        result = event.get("testResult")
        if not result:
            continue
        target = event["id"]["testResult"]["label"]
        files = {output["name"]: output["uri"] for output in result.get("testActionOutput", [])}
        log = read_log(files["test.log"]) if "test.log" in files else ""
        status = result["status"] + (read_exit(files["test.xml"]) if "test.xml" in files else "")
        # A retried test's last run counts.
        tests[target] = TestRun(target, status, log, bool(result.get("cachedLocally")))
    return list(tests.values())


def read_file(uri):
    return open(unquote(urlparse(uri).path), errors="replace").read()


def read_exit(uri):
    """How a program ended that failed, of Bazel's report on it."""
    found = re.search(r"exited with error code (\d+)", read_file(uri))
    if not found:
        return ""
    stopped = "; it was stopped from outside" if int(found[1]) == 128 + signal.SIGCONT else ""
    return ", exit status " + found[1] + stopped


def read_log(uri):
    """Without Bazel's own lines on top, which end in a ruler."""
    text = read_file(uri)
    head, ruler, rest = text.partition("\n" + "-" * 77 + "\n")
    return rest if ruler else text


def read_broken(events):
    """Targets that failed to build, and packages that failed to load."""
    broken = set()
    for event in events:
        name = event["id"]
        if "targetCompleted" in name and not event.get("completed", {}).get("success"):
            broken.add(name["targetCompleted"]["label"])
        if "pattern" in name and "aborted" in event:
            broken.add(" ".join(name["pattern"]["pattern"]))
        if "configuredLabel" in name and "aborted" in event:
            broken.add(name["configuredLabel"]["label"])
    return sorted(broken)
