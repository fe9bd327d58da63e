"""How `lamella test` counts: what failed, died or did not build is never missing at the end."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bindings.cli import bazel, counting, test  # noqa: E402


def counts(count):
    return count.passed, count.failed, count.skipped


@pytest.mark.parametrize(
    "log, ended_well, expected",
    [
        ("ok a.b\nok a.c\nskip a.d: no GPU\n2 passed, 0 failed, 1 skipped\n", True, (2, 0, 1)),
        (
            "ok a.b\n  x.c:1: 1 is 1, 2 is 2\nFAIL a.c (seed 1)\n1 passed, 1 failed\n",
            False,
            (1, 1, 0),
        ),
        ("ok a.b\nFAIL a.c (seed 1): the process died here\n", False, (1, 1, 0)),
        ("ok a.b\n", False, (1, 1, 0)),  # died between two tests, or leaked
        ("", False, (0, 1, 0)),  # could not be started, or timed out
        ("a program without the harness\n", True, (1, 0, 0)),
        ("0 passed, 0 failed\n", True, (0, 0, 0)),  # a filter that matched nothing
    ],
)
def test_every_case_of_a_program_counts_once(log, ended_well, expected):
    assert counts(counting.judge("//a:b", log, ended_well, "status 1")) == expected


@pytest.mark.parametrize(
    "outcome, failed",
    [
        (bazel.Outcome(0, [], [], ""), 0),
        (bazel.Outcome(4, [], [], ""), 0),
        (bazel.Outcome(1, [], ["//a:b", "//a:c"], "error"), 2),
        (
            bazel.Outcome(
                1,
                [bazel.TestRun("//a:b", "PASSED", "ok a.b\n", True)],
                [],
                "a BUILD file is broken",
            ),
            1,
        ),
        (bazel.Outcome(37, [], [], "bazel itself failed"), 1),
    ],
)
def test_what_does_not_build_counts_as_failed(monkeypatch, outcome, failed):
    monkeypatch.setattr(bazel, "test", lambda targets, options: outcome)
    assert test.run_config(test.CONFIGS[0]).failed == failed


@pytest.mark.parametrize("again", [False, True])
def test_bazels_cache_is_left_out_when_asked(monkeypatch, again):
    asked = []
    monkeypatch.setattr(
        bazel, "test", lambda targets, options: asked.extend(options) or bazel.Outcome(0, [], [], "")
    )
    test.run_config(test.CONFIGS[0], again)
    assert ("--nocache_test_results" in asked) == again


def test_the_last_line_adds_everything_up():
    total = counting.Count()
    for part in [counting.Count(1, 0, 0), counting.Count(2, 1, 0)]:
        total.add(part)
    assert total.line() == "3 passed, 1 failed"
    total.add(counting.judge("//a:b", "skip a.d: no GPU\n0 passed, 0 failed, 1 skipped\n", True, ""))
    assert total.line() == "3 passed, 1 failed, 1 skipped"
    assert total.skips == ["skip a.d: no GPU"]


def test_the_end_names_what_failed_long_before(capsys):
    total = counting.Count()
    log = "seed 1\nok a.b\n  x.c:1: 1 is 1, 2 is 2\nFAIL a.c (seed 1)\n%s1 passed, 1 failed\n"
    total.add(counting.judge("tsan: //a:b", log % ("more\n" * 50), False, "failed"))
    total.add(counting.judge("asan: //a:d", "seed 2\nok a.e\n", False, "timeout"))
    total.add(counting.Count(5))
    capsys.readouterr()
    total.show()
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["---- tsan: //a:b (failed)", "FAIL a.c (seed 1)", "more"]
    assert said[-5:] == [
        "1 passed, 1 failed",
        "---- asan: //a:d (timeout)",
        "seed 2",
        "ok a.e",  # and what came next did not end
        "7 passed, 2 failed",
    ]


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="good" file="tests/a.py"/>
<testcase classname="tests.a" name="bad" file="tests/a.py"><failure message="no">def bad():
E   assert 1 == 2</failure></testcase>
<testcase classname="tests.b" name="broken"><error message="no">E   no fixture</error></testcase>
<testcase classname="tests.b" name="left" file="tests/b.py"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_pythons_report_is_counted_and_names_what_failed(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    found = counting.read_junit(tmp_path / "report.xml")
    assert counts(found["tests/a.py"]) == (1, 1, 0)
    assert counts(found["tests/b.py"]) == (0, 0, 1)
    assert counts(found[""]) == (0, 1, 0)
    count = counting.total(found.values())
    assert counts(count) == (1, 2, 1)
    assert sorted(count.failures) == [
        "---- python: tests.a.bad\ndef bad():\nE   assert 1 == 2",
        "---- python: tests.b.broken\nE   no fixture",
    ]
    (tmp_path / "report.xml").write_text("")
    assert counting.read_junit(tmp_path / "report.xml") == {}


@pytest.mark.parametrize("code, said", [(1, ""), (146, "; it was stopped from outside")])
def test_bazels_events_say_how_a_program_ended(tmp_path, code, said):
    (tmp_path / "test.log").write_text("ok a.b\n")
    report = '<error message="exited with error code %d"></error>' % code
    (tmp_path / "test.xml").write_text(report)
    files = [{"name": n, "uri": (tmp_path / n).as_uri()} for n in ("test.log", "test.xml")]
    event = {"id": {"testResult": {"label": "//a:b"}}}
    event["testResult"] = {"status": "FAILED", "testActionOutput": files}
    (run,) = bazel.read_tests([event])
    assert run == ("//a:b", "FAILED, exit status %d%s" % (code, said), "ok a.b\n", False)


def test_bazels_events_name_what_failed_to_build():
    events = [
        {"id": {"targetCompleted": {"label": "//a:good"}}, "completed": {"success": True}},
        {"id": {"targetCompleted": {"label": "//a:bad"}}, "completed": {}},
        {
            "id": {"targetCompleted": {"label": "//a:gone"}},
            "aborted": {"reason": "ANALYSIS_FAILURE"},
        },
        {
            "id": {"pattern": {"pattern": ["//nosuch/..."]}},
            "aborted": {"reason": "LOADING_FAILURE"},
        },
    ]
    assert bazel.read_broken(events) == ["//a:bad", "//a:gone", "//nosuch/..."]
