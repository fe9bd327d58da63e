"""The schedule command as a user meets it: the list and what it calls best, pictures, tables from
files, mistakes."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHAPE = ["-p", "4", "-v", "2", "-m", "8"]


def schedule(*arguments):
    return subprocess.run(
        [str(ROOT / "lamella"), "schedule", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def built():
    """The program, so that no command has to say that it builds it."""
    assert schedule("-p", "1", "-m", "1").returncode == 0


def listed(*arguments):
    done = schedule(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {row["name"]: row for row in told["schedules"]}, told


def test_the_list_gives_each_schedules_step_bubble_and_memory():
    rows, told = listed(*SHAPE)
    expected = {  # p 4, m 8, F = I = W = 1: step, bubble in %, most micro-batches on a rank
        "layerwise": (96, 75.0, 1),
        "gpipe": (33, 27.3, 8),
        "1f1b": (33, 27.3, 4),
        "interleaved": (28.5, 15.8, 5.5),
        "zb-h1": (27, 11.1, 4),
        "zb-h2": (27, 11.1, 7),
        "interleaved-zb": (25.5, 5.9, 4),
        "zbv": (25.5, 5.9, 4),
        "v-half": (26.5, 9.4, 3),
        "v-min": (29.5, 18.6, 2),
        "dualpipev": (27, 11.1, 4.5),
    }
    assert set(rows) == set(expected)
    for name, (step, bubble, held) in expected.items():
        assert rows[name]["makespan"] == pytest.approx(step), name
        assert 100 * rows[name]["bubble"] == pytest.approx(bubble, abs=0.05), name
        assert max(rows[name]["held"]) == pytest.approx(held), name
    fastest = min(row["makespan"] for row in rows.values())
    assert rows[told["best"]]["makespan"] == pytest.approx(fastest)


def test_text_marks_the_best_and_says_why():
    done = schedule(*SHAPE)
    _, told = listed(*SHAPE)
    marked = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("*")]
    assert marked == [told["best"]]
    assert "best: %s: the shortest step" % told["best"] in done.stdout
    assert "auto: %s: " % told["auto"]["auto"] in done.stdout


def test_a_cap_rules_out_what_holds_more():
    rows, told = listed(*SHAPE, "--cap", "3")
    assert "holds 4, the cap is 3" in rows["1f1b"]["why_not"]
    assert max(rows[told["best"]]["held"]) <= 3
    in_bytes = schedule(*SHAPE, "--memory", "1e9,2e9", "--cap", "7e9").stdout
    assert "holds 9e+09, the cap is 7e+09" in in_bytes


def test_stages_that_cannot_split_leave_the_schedules_that_need_it_out():
    rows, told = listed(*SHAPE, "--no-split")
    assert not rows[told["best"]]["splits"]
    assert told["auto"]["auto"] == "interleaved"


def test_costs_decide_what_is_best():
    _, told = listed(*SHAPE, "--costs", "1,1,1,0,1.5")  # F and B in one take half the time
    assert told["best"] == told["auto"]["auto"] == "dualpipev"


def test_layers_are_cut_by_what_they_cost():
    rows, _ = listed("-p", "4", "-m", "8", "--layers", "Et*14,L", "--weights", "0,1,1,2")
    assert rows["1f1b"]["layout"] == "Et*4|t*4|t*4|ttL"
    assert rows["1f1b"]["proof"].startswith("exact")
    given, _ = listed("-p", "2", "-m", "8", "--layers", "Et*3|tL")
    assert given["1f1b"]["layout"] == "Et*3|tL" and given["1f1b"]["proof"] == "given"
    assert "number of stages" in given["interleaved"]["why_not"]


def test_any_schedule_is_drawn(tmp_path):
    grid = schedule("-p", "2", "-m", "3", "--draw", "1f1b")
    assert grid.returncode == 0 and grid.stdout.startswith("worker 0  F0")
    for suffix, begins in ((".svg", "<svg"), (".json", "{"), (".txt", "worker 0")):
        out = tmp_path / ("picture" + suffix)
        done = schedule("-p", "2", "-m", "3", "--draw", "gpipe", "--out", out)
        assert (done.returncode, done.stdout) == (0, "")
        assert out.read_text().startswith(begins)
    json.loads((tmp_path / "picture.json").read_text())


V = {  # two workers' first bars: a stage each way, the second one in lower case
    "zbv": ("F0-F1-F2--f0-i0-w0-f1-i1--w1-", "...F0-f0--F1-f1-i0-w0-F2--I0-W0-"),
    "dualpipev": ("F0-F1-F2-f0-i0-w0-f1--F3-b1----", "...F0-f0-F1-f1-F2-b0-----f2-B0----"),
}


@pytest.mark.parametrize("name, pairs", [("zbv", 0), ("dualpipev", 6)])
def test_a_v_and_fused_pairs_are_drawn(tmp_path, name, pairs):
    shape = ["-p", "2", "-m", "4", "--draw", name]
    grid = schedule(*shape).stdout.splitlines()
    for worker, bars in enumerate(V[name]):
        assert grid[worker].startswith("worker %d  %s" % (worker, bars))
    for suffix in (".svg", ".json"):
        assert schedule(*shape, "--out", tmp_path / ("a" + suffix)).returncode == 0
    svg = (tmp_path / "a.svg").read_text()
    assert 'class="f2"' in svg and "every second stage" in svg
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    bars = [(e["pid"], e["args"]["stage"]) for e in events if e["ph"] == "X"]
    assert set(bars) == {(0, 0), (0, 3), (1, 1), (1, 2)}
    seconds = [e for e in events if e["ph"] == "X" and e["args"]["part"] == 1]
    assert len(seconds) == pairs and all(e["name"].startswith("B") for e in seconds)


def test_a_table_is_converted_there_and_back(tmp_path):
    text = "rank 0: 0F0 0F1 0B0 0B1\nrank 1: 1F0 1B0 1F1 1B1\n"
    (tmp_path / "a.txt").write_text(text)
    csv = schedule("--convert", tmp_path / "a.txt", "--to", "csv")
    assert csv.stdout == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"
    (tmp_path / "a.csv").write_text(csv.stdout)
    assert schedule("--convert", tmp_path / "a.csv", "--to", "text").stdout == text
    assert schedule("--draw", tmp_path / "a.csv").stdout.startswith("worker 0  F0")


def test_check_proves_a_table_or_says_what_is_wrong_with_it(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n")
    good = schedule("--check", table)
    assert good.returncode == 0
    assert "runs: 2 ranks, 2 stages, 2 micro-batches; 8 actions, 4 transfers" in good.stdout
    table.write_text("0F0,0B0,0F1,0B1\n1F0,1F1,1B1,1B0\n")
    dead = schedule("--check", table)
    assert (dead.returncode, dead.stdout) == (1, "")
    assert "deadlock: rank 0, position 1: 0B0 waits for 1B0" in dead.stderr


@pytest.mark.parametrize(
    "arguments, status, reason",
    [
        (["-p", "0", "-m", "8"], 2, "'0' is not a number from 1"),
        (["-p", "4"], 2, "-p and -m are needed"),
        (["-p", "4", "-m", "4", "--draw", "dualpipev"], 2, "m must be at least 2 p, so 8"),
        (["-p", "4", "-m", "8", "--draw", "nosuch"], 2, 'name is "nosuch", known are layerwise'),
        (["-p", "4", "-v", "1", "-m", "8", "--draw", "zbv"], 2, "v must be 2"),
        (["-p", "99999", "-m", "99999"], 2, "at most"),
        (["-p", "4", "-m", "8", "--cap", "0.5"], 1, "even layerwise holds 1: 0.5 is missing"),
        (["-p", "4", "-m", "8", "--layers", "Et*3xL"], 2, "position 5: found 'x', expected a"),
        (["-p", "4", "-m", "8", "--layers", "EtL"], 2, "3 layers on 4 stages"),
        (["-p", "4", "-m", "8", "--layers", "Et*8,L", "--cap", "1"], 1, "no cut fits: stage "),
        (["-p", "4", "-m", "8", "--costs", "1,x,1"], 2, "'x' is not a number"),
        (["-p", "4", "-m", "8", "--costs", "1,1"], 2, "expected F,I,W,comm,FB"),
        (["-p", "4", "-m", "8", "--out", "x.svg"], 2, "--out is for --draw"),
        (["-p", "4", "-m", "8", "--draw", "1f1b", "--out", "x.png"], 2, "expected .txt, .svg or"),
        (["-p", "4", "-m", "8", "--draw", "1f1b", "--out", "/no/x.svg"], 2, "No such file"),
        (["--check", "/nosuch.csv"], 2, "/nosuch.csv: No such file or directory"),
        (["--convert", "/nosuch.csv", "--to", "png"], 2, "invalid choice: 'png'"),
    ],
)
def test_a_mistake_is_one_line(arguments, status, reason, built):
    done = schedule(*arguments)
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    assert reason in line and line.startswith("lamella: schedule: ")
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_malformed_table_names_line_and_column(tmp_path):
    table = tmp_path / "bad.csv"
    table.write_text("0F0,0F1,0B0,0B1\n1F0,1X0\n")
    for question in ("--check", "--convert", "--draw"):
        done = schedule(question, table)
        assert (done.returncode, done.stdout) == (1, "")
        assert "%s: line 2, column 6: found kind 'X'" % table in done.stderr
        assert len(done.stderr.splitlines()) == 1
