"""Tables as PyTorch's pipelining has them: it reads ours, each cell printed back the same; the ones
that its own schedules write are read by ours, and are the same schedules."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT)]
schedules = pytest.importorskip(
    "torch.distributed.pipelining.schedules", reason="torch is not installed: ./lamella setup"
)
GOLDEN = sorted((ROOT / "tests/golden/schedules").glob("*.txt"))
NAMES = {  # ours: PyTorch's class
    "interleaved": "ScheduleInterleaved1F1B",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}
SIZES = [(2, 4), (4, 8), (4, 12)]


@pytest.fixture(scope="module")
def program():
    from bindings.cli import schedule

    return schedule.build()


def ask(program, *words, table=""):
    done = subprocess.run([program, *words], input=table, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_csv(program, table):
    return ask(program, "write", "format=csv", table=table)


def cells(csv):
    """Each rank's; an empty one is a rank at rest."""
    return [[cell for cell in line.split(",") if cell] for line in csv.splitlines()]


def read(csv):
    read_cell = schedules._Action.from_str
    return {r: [read_cell(cell) for cell in row] for r, row in enumerate(cells(csv))}


def written_by_torch(name, p, m, comms, path):
    """A schedule of PyTorch's for 2 stages per rank, which it makes without running any."""
    stages = [
        SimpleNamespace(
            group_size=p,
            num_stages=2 * p,
            group_rank=0,
            stage_index=index,
            is_first=index == 0,
            is_last=index == 2 * p - 1,
            submod=None,
        )
        for index in (0, 2 * p - 1)
    ]
    made = getattr(schedules, NAMES[name])(stages, m)
    made._dump_csv(str(path), "compute_comms" if comms else "compute_only")
    return path.read_text()


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_pytorch_reads_every_cell(program, golden):
    csv = as_csv(program, golden.read_text())
    assert [[str(action) for action in row] for row in read(csv).values()] == cells(csv)


@pytest.mark.parametrize("p, m", SIZES)
@pytest.mark.parametrize("name, v", [("1f1b", 1), ("zb-h1", 1), ("v-half", 2), ("dualpipev", 2)])
def test_pytorch_takes_our_tables_for_schedules(program, name, v, p, m):
    made = ask(program, "make", "name=" + name, "p=%d" % p, "v=%d" % v, "m=%d" % m)
    ranks = schedules._validate_schedule(read(as_csv(program, made)), p, p * v, m)
    assert ranks == {s: min(s, 2 * p - 1 - s) if v == 2 else s for s in range(p * v)}


@pytest.mark.parametrize("p, m", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_own_tables_are_the_same_schedules(program, name, p, m, tmp_path):
    theirs = written_by_torch(name, p, m, False, tmp_path / "torch.csv")
    ours = as_csv(program, ask(program, "make", "name=" + name, "p=%d" % p, "v=2", "m=%d" % m))
    assert cells(as_csv(program, theirs)) == cells(theirs) == cells(ours)


@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_own_tables_with_transfers_are_read(program, name, tmp_path):
    theirs = written_by_torch(name, 4, 8, True, tmp_path / "torch.csv")
    assert "SEND_F" in theirs and "RECV_B" in theirs
    assert cells(as_csv(program, theirs)) == cells(theirs)


def test_pytorchs_1f1b_is_ours(program):
    stage = SimpleNamespace(num_stages=4, group_size=4, group_rank=0, is_last=False)
    order = schedules.Schedule1F1B(stage, 8)._get_pipeline_order()
    rows = [",".join("" if a is None else str(a) for a in row) for row in order.values()]
    theirs = cells(as_csv(program, "\n".join(rows) + "\n"))
    assert [row.pop() for row in theirs] == ["%dREDUCE_GRAD" % r for r in range(4)]
    ours = cells(as_csv(program, ask(program, "make", "name=1f1b", "p=4", "m=8", "v=1")))
    assert theirs[:3] == ours[:3]  # theirs counts the last rank's forwards from 1
