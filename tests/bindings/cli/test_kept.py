"""`lamella test` runs a file of Python tests again when something that it reads has changed, and only then."""

import fnmatch
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from bindings.cli import kept, python_tests  # noqa: E402
from bindings.cli.counting import Count, total  # noqa: E402

TESTS = ["tests/a/test_bench.py", "tests/a/test_one.py", "tests/b/test_readme.py"]
TREE = [*TESTS, "tests/a/samples.py", "tests/bench/x.c", "tests/unit/x_test.c", "plugin/x.c", "README.md"]
HOST = Count(2, 0, 1)
HOST.skips = ["skip b: no GPU"]


def counts(count):
    return count.passed, count.failed, count.skipped


@pytest.fixture
def tree(tmp_path):
    for path in TREE:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / ".gitignore").write_text("/build/\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def changed(tree, path, how=lambda path: path.write_text("other")):
    before = kept.digests(tree)
    how(tree / path)
    after = kept.digests(tree)
    assert sorted(after) == TESTS
    return [name for name in TESTS if before[name] != after[name]]


@pytest.mark.parametrize(
    "path, again",
    [
        ("tests/a/test_one.py", ["tests/a/test_one.py"]),
        ("tests/a/samples.py", TESTS),
        ("plugin/x.c", TESTS),
        ("plugin/new.c", TESTS),
        ("tests/unit/x_test.c", []),
        ("tests/bench/x.c", ["tests/a/test_bench.py"]),
        ("README.md", ["tests/b/test_readme.py"]),
    ],
)
def test_a_file_runs_again_when_what_it_reads_changed(tree, path, again):
    assert changed(tree, path) == again


def test_one_that_is_deleted_or_may_be_run_has_changed(tree):
    assert changed(tree, "plugin/x.c", lambda path: path.chmod(0o755)) == TESTS
    assert changed(tree, "plugin/x.c", Path.unlink) == TESTS


def test_what_git_ignores_is_not_read(tree):
    (tree / "build").mkdir()
    assert changed(tree, "build/x.c") == []


@pytest.mark.parametrize("name", ["LAMELLA_TIMEOUT", "PATH", "CC"])
def test_another_environment_is_another_machine(tree, monkeypatch, name):
    assert changed(tree, name, lambda path: monkeypatch.setenv(name, "/usr/bin:/bin:/other")) == TESTS


def test_packages_are_of_the_machine(tree, monkeypatch):
    said = kept.read
    status = lambda path: monkeypatch.setattr(  # noqa: E731
        kept, "read", lambda file: "new" if "dpkg" in str(file) else said(file)
    )
    assert changed(tree, "", status) == TESTS


def test_names_that_read_more_are_files_of_tests():
    there = [str(path.relative_to(kept.ROOT)) for path in kept.ROOT.glob("tests/*/**/test_*.py")]
    for reader in {reader for but in kept.NOT_READ.values() for reader in but}:
        assert fnmatch.filter(there, reader), reader


def test_without_git_nothing_is_known(tmp_path):
    assert kept.digests(tmp_path) == {}


class Pytest:
    """Stands in for pytest.run: notes what it is asked to run, and gives what it is told to."""

    def __init__(self, returncode=0, counts=None):
        self.returncode, self.counts, self.asked = returncode, counts or {}, []

    def __call__(self, arguments):
        self.asked.append(arguments)
        return python_tests.Run(
            self.returncode, [], {k: v for k, v in self.counts.items() if k in arguments}
        )


@pytest.fixture
def run(tree, monkeypatch):
    monkeypatch.setattr(python_tests, "digests", lambda: kept.digests(tree))
    monkeypatch.setattr(python_tests, "Results", lambda: kept.Results(tree / "build/kept.json"))

    def once(runner, wanted=None, again=False):
        monkeypatch.setattr(python_tests, "pytest", runner)
        return python_tests.run(wanted, again)

    return once


GOOD = dict(zip(TESTS, [Count(3), HOST, Count(1)]))


def test_what_passed_counts_again_with_its_skips_and_does_not_run(run, tree, capsys):
    first, second = Pytest(0, GOOD), Pytest()
    assert counts(run(first)) == (6, 0, 1)
    again = run(second)
    assert first.asked == [TESTS] and second.asked == [[]]
    assert counts(again) == (6, 0, 1) and again.skips == HOST.skips
    assert "3 files, 3 from cache" in capsys.readouterr().out
    (tree / TESTS[1]).write_text("other")
    third = Pytest(0, GOOD)
    assert counts(run(third)) == (6, 0, 1) and third.asked == [TESTS[1:2]]


def test_what_failed_is_never_kept(run):
    bad = Count(2, 1, 0)
    assert counts(run(Pytest(1, {**GOOD, TESTS[0]: bad}))) == (5, 1, 1)
    after = Pytest(1, {TESTS[0]: bad})
    assert counts(run(after)) == (5, 1, 1) and after.asked == [TESTS[:1]]
    assert counts(run(Pytest(0, GOOD))) == (6, 0, 1)


@pytest.mark.parametrize("returncode", [2, 3, 4, -9])
def test_of_a_run_that_was_cut_short_nothing_is_kept(run, returncode):
    assert run(Pytest(returncode, GOOD)).failed == 1
    after = Pytest(0, GOOD)
    assert run(after).failed == 0 and after.asked == [TESTS]


def test_what_changed_while_it_ran_is_not_kept(run, tree):
    class Meanwhile(Pytest):
        def __call__(self, arguments):
            (tree / TESTS[0]).write_text("saved in an editor")
            return super().__call__(arguments)

    run(Meanwhile(0, GOOD))
    after = Pytest(0, GOOD)
    run(after)
    assert after.asked == [TESTS[:1]]


def test_a_filtered_run_keeps_nothing_and_asks_for_nothing_kept(run):
    assert counts(run(Pytest(0, {"tests": Count(1)}), "one")) == (1, 0, 0)
    after = Pytest(0, GOOD)
    run(after)
    assert after.asked == [TESTS]
    filtered = Pytest(0, {"tests": Count(1)})
    assert counts(run(filtered, "one")) == (1, 0, 0) and filtered.asked == [["-k", "one", "tests"]]


def test_all_runs_again_when_asked(run):
    run(Pytest(0, GOOD))
    after = Pytest(0, GOOD)
    run(after, again=True)
    assert after.asked == [TESTS]


def test_a_spoilt_file_of_results_is_as_none(run, tree):
    run(Pytest(0, GOOD))
    (tree / "build/kept.json").write_text('{"tests/a/te')
    after = Pytest(0, GOOD)
    assert counts(run(after)) == (6, 0, 1) and after.asked == [TESTS]


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_pytest_names_files_as_git_does():
    name = "tests/bindings/cli/test_projection.py"
    found = python_tests.pytest([name])
    assert found.returncode == 0 and list(found.counts) == [name]
    assert total(found.counts.values()).passed > 0 and name in kept.digests()
