"""Schedules from Python, and the ABI's structs as ctypes has them."""

import ctypes
import re
from pathlib import Path

import pytest

from lamella import errors, operators, pipeline_abi, schedule
from lamella.schedule import Schedule

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def test_a_golden_reads_and_prints_as_it_was():
    text = (GOLDEN / "schedules/1f1b_p2_m3.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert Schedule.parse(text).text().splitlines() == lines
    assert Schedule.build("1f1b", 2, 3).text().splitlines() == lines


def test_a_file_is_loaded_in_either_form(tmp_path):
    plan = Schedule.build("zbv", 2, 4, 2)
    for format in ("text", "csv"):
        (tmp_path / "plan").write_text(plan.text(format))
        assert Schedule.load(tmp_path / "plan").text() == plan.text()


def test_stages_lie_where_the_schedule_puts_them():
    plan = Schedule.build("zbv", 3, 6, 2)
    assert (plan.n_ranks, plan.n_stages, plan.n_micro) == (3, 6, 6)
    assert [plan.stages_of(rank) for rank in range(3)] == [[0, 5], [1, 4], [2, 3]]
    assert [plan.rank_of(stage) for stage in range(6)] == [0, 1, 2, 2, 1, 0]
    fused = Schedule.build("dualpipev", 2, 4, 2)
    assert [fused.stages_of(rank) for rank in range(2)] == [[0, 3], [1, 2]]


def test_simulation_follows_costs():
    plan = Schedule.build("1f1b", 4, 8)
    unit = plan.simulate()
    assert (unit.makespan, len(unit.events)) == (33, 64) and abs(unit.bubble - 9 / 33) < 1e-9
    assert plan.simulate([1, 1, 1, 2]).makespan > 33 < plan.simulate(transfer=[1, 1, 1]).makespan
    assert plan.check().makespan == 33 and plan.check().peak_in_flight == 4
    assert "<svg" in schedule.draw(unit.events, "svg") and schedule.draw(unit.events)


def test_auto_says_why():
    choice = schedule.choose(4, 8, stages_per_rank=2, splits=True)
    assert (choice.name, choice.stages_per_rank) == ("zbv", 2) and choice.reason
    assert schedule.choose(4, 8, stages_per_rank=2).name == "interleaved"
    with pytest.raises(errors.Error, match="12"):
        schedule.choose(4, 8, activation_bytes=1 << 20, cap_bytes=12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Schedule.build("2f2b", 2, 2), "2f2b"),
        (lambda: Schedule.build("zbv", 2, 2), "zbv.* v must be 2"),
        (lambda: Schedule.build("1f1b", 0, 2), "0"),
        (lambda: Schedule.parse("rank 0: 0F0 0X0\n"), "line 1, column 14: found kind 'X'"),
        (lambda: Schedule.parse("rank 0: 0B0 0F0\n"), "0B0"),
        (lambda: Schedule.build("1f1b", 2, 2).simulate([1, 2, 3]), "3 costs, expected 2"),
        (lambda: Schedule.build("1f1b", 2, 2).text("xml"), "xml"),
    ],
)
def test_what_cannot_be_is_refused_by_its_place(make, message):
    with pytest.raises(errors.Error, match=message):
        make()


STRUCTS = {
    "lam_attr": operators.Attr,
    "lam_call": operators.Call,
    "lam_inferred": operators.Inferred,
    "lam_stage_io": pipeline_abi.StageIO,
    "lam_stage": pipeline_abi.Stage,
    "lam_edge": pipeline_abi.Edge,
    "lam_tied": pipeline_abi.Tied,
    "lam_pipeline_desc": pipeline_abi.PipelineDesc,
    "lam_pipeline_report": pipeline_abi.PipelineReport,
    "lam_explained": pipeline_abi.Explained,
    "lam_idle": pipeline_abi.Idle,
    "lam_event": pipeline_abi.Event,
    "lam_carrier": pipeline_abi.Carrier,
    "lam_edge_info": pipeline_abi.EdgeInfo,
    "lam_shape": pipeline_abi.Shape,
    "lam_schedule_info": pipeline_abi.ScheduleInfo,
    "lam_costs": pipeline_abi.Costs,
    "lam_simulated": pipeline_abi.Simulated,
    "lam_choice_desc": pipeline_abi.ChoiceDesc,
    "lam_choice": pipeline_abi.Choice,
}


def golden_layout():
    """struct -> (bytes, [(offset, size, field)])"""
    found = {}
    for line in (GOLDEN / "abi/layout.txt").read_text().splitlines():
        if match := re.match(r"(\w+): (\d+) bytes", line):
            found[match[1]] = fields = (int(match[2]), [])
        elif match := re.match(r"\s+(\d+) \+(\d+)\s+(\w+)$", line):
            fields[1].append((int(match[1]), int(match[2]), match[3]))
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_structs_have_the_abis_layout(name):
    size, fields = golden_layout()[name]
    ours = STRUCTS[name]
    named = {"in": "inputs", "out": "outputs"}
    assert ctypes.sizeof(ours) == size
    for offset, bytes, field in fields:
        found = getattr(ours, named.get(field, field))
        assert (found.offset, found.size) == (offset, bytes), field
    assert len(ours._fields_) == len(fields)
