"""The bench command's arithmetic and tables; what is measured is the programs' own."""

import argparse
import json
import subprocess
import sys

import pytest

from bindings.cli import bench, bench_figures, bench_rows, bench_table
from bindings.cli.common import ROOT, Problem

ROUNDS = [1.0, 1.2, 1.1]


def test_a_ratio_is_the_median_of_the_rounds_own():
    row = bench_figures.compare("a", "us", [1.0, 8.0, 3.0], "peer", [2.0, 4.0, 3.0], "<= 1.1")
    assert (row.figure, row.peer_figure, row.ratio, row.met) == (3.0, 3.0, 1.0, True)
    assert bench_figures.compare("a", "us", [2.0], "peer", [1.0], "<= 1.1").met is False
    assert bench_figures.compare("a", "us", [2.0], "peer", [1.0]).met is None


@pytest.mark.parametrize("figure, met", [(0.94, False), (0.95, True), (1.0, True), (1.05, True), (1.06, False)])
def test_a_prediction_may_be_missed_either_way(figure, met):
    row = bench_figures.compare("a", "us", [figure], "simulated", [1.0], "0.95 to 1.05")
    assert (row.goal, row.met) == ("0.95 to 1.05", met)
    assert f"| simulated 1 | {figure:.2f} | 0.95 to 1.05 |" in bench_table.rows_markdown([row])


def test_a_goal_may_be_on_the_figure_itself():
    assert bench_figures.alone("a", "ms", ROUNDS, ">= 1.05").met is True
    assert bench_figures.alone("a", "ms", ROUNDS, "<= 1.05").met is False
    assert bench_figures.alone("a", "ms", ROUNDS).spread == pytest.approx(0.2 / 1.1)


def test_rows_come_as_text_as_markdown_and_as_json(tmp_path):
    rows = [bench_figures.alone("a", "ms", ROUNDS, "<= 1"), bench_figures.compare("b", "us", [2.0], "peer", [1.0])]
    assert "NO" in bench_table.table(rows) and "peer" in bench_table.table(rows)
    text = bench_table.markdown(rows, {"cores": 2, "cpu": "X", "kernel": "6", "commit": "abc"})
    assert text.startswith("2 cores of X, Linux 6, commit abc.")
    assert "| a | 1.1 ms | 18% |  |  | <= 1 | **no** |" in text and "| b | 2 us |  | peer 1 | 2.00 |  |  |" in text
    bench_table.write(tmp_path / "rows", json.dumps(1))
    assert (tmp_path / "rows").read_text() == "1"


def test_json_has_the_machine_and_for_each_row_these_keys():
    rows = [bench_figures.alone("a", "ms", [2.0]), bench_figures.compare("b", "us", [2.0], "peer", [1.0], "<= 1.1", "why")]
    written = json.loads(json.dumps(bench_table.document(rows, bench.machine())))
    assert set(written) == {"machine", "rows"}
    assert set(written["machine"]) == {"cpu", "cores", "kernel", "commit"}
    keys = ["name", "figure", "unit", "spread", "peer", "peer_figure", "ratio", "goal", "met", "note"]
    assert [list(row) for row in written["rows"]] == [keys, keys]
    assert list(written["rows"][0].values()) == ["a", 2.0, "ms", None, "", None, None, "", None, ""]
    assert list(written["rows"][1].values()) == ["b", 2.0, "us", None, "peer", 1.0, 2.0, "<= 1.1", False, "why"]


def beside_nothing(n):
    """a figure of a program, and one whose peer is not on this machine"""
    figures = bench_figures.rounds({"program": ["printf", "a 2 us 0.25\n"]}, n)["program"]["a"]
    return [bench_figures.alone("a", "us", figures, "<= 1"), bench_figures.compare("b", "us", figures, "peer", None, "<= 1.1", "why")]


def lost(n):
    """a group that fails"""
    raise Problem("gone")


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command with these two groups, as it is typed: its status, and what it wrote as JSON."""
    monkeypatch.setattr(bench, "GROUPS", {group.__name__: group for group in (lost, beside_nothing)})
    monkeypatch.setattr(bench.packages, "ensure", lambda command: [])
    monkeypatch.setattr(bench.bazel, "build", lambda targets: 0)

    def run(*arguments):
        parser, file = argparse.ArgumentParser(), tmp_path / "rows.json"
        bench.add_arguments(parser)
        status = bench.main(parser.parse_args(["--json", str(file), *arguments]))
        return status, json.loads(file.read_text())

    return run


def test_the_command_writes_what_its_groups_measured(main, capsys):
    status, written = main("--only", "beside_nothing", "--rounds", "1")
    assert status == 0 and set(written) == {"machine", "rows"} and written["machine"]["cores"] >= 1
    assert written["rows"] == [
        {"name": "a", "figure": 2.0, "unit": "us", "spread": 0.25, "peer": "", "peer_figure": None, "ratio": None,
         "goal": "<= 1", "met": False, "note": ""},
        {"name": "b", "figure": 2.0, "unit": "us", "spread": 0.25, "peer": "peer", "peer_figure": None, "ratio": None,
         "goal": "<= 1.1", "met": None, "note": "why"},
    ]
    assert "2 us" in capsys.readouterr().out


def test_a_group_that_fails_leaves_the_others_their_rows(main, capsys):
    status, written = main()
    assert status == 1 and [row["name"] for row in written["rows"]] == ["a", "b"]
    said = capsys.readouterr()
    assert "bench lost: gone" in said.out + said.err


def test_packages_that_cannot_be_had_leave_the_groups_their_turn(main, monkeypatch, capsys):
    monkeypatch.setattr(bench.packages, "ensure", lost)
    status, written = main("--only", "beside_nothing")
    assert status == 0 and len(written["rows"]) == 2
    said = capsys.readouterr()
    assert "bench: gone" in said.out + said.err


@pytest.mark.parametrize("path", ["/no/such/folder/x", "/"])
def test_a_file_that_cannot_be_written_is_one_line(path):
    with pytest.raises(Problem, match="cannot write"):
        bench_table.write(path, "text")


def test_a_program_that_fails_or_is_not_there_is_one_line():
    with pytest.raises(Problem, match="is not there"):
        bench_figures.measure(["/no/such/program"])
    with pytest.raises(Problem, match="failed: gone wrong"):
        bench_figures.measure(["sh", "-c", "echo gone wrong >&2; exit 3"])


def test_lines_of_a_program_are_its_figures():
    assert bench_figures.measure(["printf", "# a comment\na 1.5 us 0.1\nnonsense\nb/2 3 ns 0\n"]) == {"a": 1.5, "b/2": 3.0}


@pytest.mark.parametrize("line, own, shown", [("a 1.5 us 0.25", 0.25, "25%"), ("a 1.5 us", None, "")])
def test_of_one_round_the_spread_is_its_programs_own(line, own, shown):
    figures = bench_figures.rounds({"program": ["printf", f"{line}\n"]}, 1)["program"]["a"]
    rows = [bench_figures.alone("a", "us", figures), bench_figures.compare("a", "us", figures, "peer", [3.0])]
    assert [row.spread for row in rows] == [own, own]
    assert f"| 1.5 us | {shown} |" in bench_table.rows_markdown(rows)
    assert bench_figures.alone("a", "us", figures + figures).spread == 0


def test_pairs_of_schedules_in_another_order_are_counted_where_they_differ():
    assert bench_rows.misordered([(100, 100), (120, 110), (140, 130)]) == 0
    assert bench_rows.misordered([(100, 100), (104, 90)]) == 0  # nearly the same
    assert bench_rows.misordered([(100, 100), (120, 90)]) == 1
    assert bench_rows.misordered([(120, 90), (100, 100), (140, 80)]) == 3
    row = bench_rows.ordered("order", [([100, 100, 100], [100, 100, 100]), ([120, 120, 120], [90, 90, 110])])
    assert (row.figure, row.met) == (1, False)


# Programs that measured 1, 2, 3 and 4 us, then 5 us once, -4, -2 and -1 us, and then nothing but 0.
IN_C = """
#include "tests/bench/spread.h"
static void show(const char *name, double *values, int n) {
  printf("%s %g us", name, median_of(values, n));
  end_line(values, n);
}
int main(void) {
  show("four", (double[]){4, 2, 3, 1}, 4), show("one", (double[]){5}, 1);
  show("below", (double[]){-1, -4, -2}, 3), show("zero", (double[]){0, 0}, 2);
}
"""
IN_PYTHON = """
from figures import show
show("four", [4, 2, 3, 1]), show("one", [5]), show("below", [-1, -4, -2]), show("zero", [0, 0])
"""


def test_a_program_in_c_tells_the_spread_of_what_it_measured_more_than_once(tmp_path):
    (tmp_path / "program.c").write_text(IN_C)
    strict = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run(["gcc", *strict, f"-I{ROOT}", "program.c", "-o", "program"], cwd=tmp_path, check=True)
    figures = bench_figures.measure([str(tmp_path / "program")])
    assert figures == {"four": 3, "one": 5, "below": -2, "zero": 0}
    spreads = {name: figure.spread for name, figure in figures.items()}
    assert spreads == {"four": 0.667, "one": None, "below": 1.5, "zero": None}


def test_a_program_in_python_tells_the_spread_of_what_it_measured_more_than_once():
    path = f"PYTHONPATH={ROOT / 'tests/bench/hosts'}"
    figures = bench_figures.measure(["env", path, sys.executable, "-B", "-c", IN_PYTHON])
    assert figures == {"four": 2.5, "one": 5, "below": -2, "zero": 0}
    assert {name for name, figure in figures.items() if figure.spread} == {"four", "below"}
    assert figures["one"].spread is None and figures["four"].spread == 1  # (3.75 - 1.25) / 2.5
