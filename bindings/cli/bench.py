"""`./lamella bench`: every speed Lamella promises, beside a peer measured in the same run.

Invariant: nothing here passes or fails a build; a row says what was measured, its spread, its peer and whether the goal was met.
Leaves measuring itself to the programs in tests/bench, which print lines `name figure unit spread`; bench_rows.py says
which of them make a row.
"""

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass

from bindings.cli import bazel, packages
from bindings.cli.common import ROOT, Problem, say


@dataclass
class Row:
    """One row of the table: INTERFACE form {name, figure, unit, spread, peer, peer_figure, ratio, goal, met, note}."""

    name: str
    figure: float
    unit: str
    spread: float                # (max - min) / median of the rounds
    peer: str = ""               # what it is compared with; "" = nothing
    peer_figure: float | None = None
    ratio: float | None = None   # figure / peer_figure, median of the rounds
    goal: str = ""               # as text, e.g. "<= 1.03"
    met: bool | None = None      # None: no goal, or no peer on this machine
    note: str = ""


def judge(value: float, goal: str) -> bool:
    """Whether `value` meets a goal written as "<= 1.03" or ">= 0.9"."""
    sign, bound = goal.split()
    return value <= float(bound) if sign == "<=" else value >= float(bound)


def measure(command: list[str], timeout: int = 300) -> dict[str, float]:
    """Run a bench program once: {name: figure} of its lines."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError as missing:
        raise Problem(f"{command[0]} is not there") from missing
    except subprocess.TimeoutExpired as late:
        raise Problem(f"{command[0]} did not end within {timeout} s") from late
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise Problem(f"{' '.join(command[:4])} failed: {last[0]}")
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    return {f[0]: float(f[1]) for f in lines if len(f) >= 3 and is_number(f[1])}


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def rounds(commands: dict[str, list[str]], n: int, timeout: int = 300) -> dict[str, dict[str, list[float]]]:
    """Run each command n times, in turn, so that drift hits all alike: {command: {line: figures of the rounds}}."""
    figures: dict[str, dict[str, list[float]]] = {key: {} for key in commands}
    for i in range(n):
        for key, command in commands.items():
            say(f"  {key}, round {i + 1} of {n}")
            for line, figure in measure(command, timeout).items():
                figures[key].setdefault(line, []).append(figure)
    return figures


def require(figures: dict, *names: str) -> None:
    """Goals are found by a figure's name: one that a program calls otherwise must not lose its goal unnoticed."""
    missing = [name for name in names if name not in figures]
    if missing:
        raise Problem(f"a goal is on {', '.join(missing)}, which no program printed")


def spread(values: list[float]) -> float:
    middle = abs(statistics.median(values))
    return (max(values) - min(values)) / middle if middle else 0.0


def compare(name: str, unit: str, ours: list[float], peer: str, theirs: list[float], goal: str = "", note: str = "") -> Row:
    """A row from paired rounds: medians, and the median of the rounds' ratios."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    return Row(name, statistics.median(ours), unit, spread(ours), peer, statistics.median(theirs), ratio, goal,
               judge(ratio, goal) if goal else None, note)


def alone(name: str, unit: str, ours: list[float], goal: str = "", note: str = "") -> Row:
    """A row whose goal, if any, is on the figure itself."""
    figure = statistics.median(ours)
    return Row(name, figure, unit, spread(ours), goal=goal, met=judge(figure, goal) if goal else None, note=note)


def machine() -> dict:
    """What the figures were measured on."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as info:
            model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), model)
    except OSError:
        pass
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(), "commit": commit}


def document(rows: list[Row], about: dict) -> dict:
    """What --json writes."""
    return {"machine": about, "rows": [asdict(row) for row in rows]}


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    head = ("what", "figure", "spread", "peer", "peer's", "ratio", "goal", "met", "note")
    cells = [head] + [row_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def row_cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    peers = "" if row.peer_figure is None else f"{row.peer_figure:.4g}"
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    return (row.name, f"{row.figure:.4g} {row.unit}", f"{row.spread:.0%}", row.peer, peers, ratio, row.goal, met, row.note)


def markdown(rows: list[Row], about: dict) -> str:
    """The rows as a table for a README, under a line that says what they were measured on."""
    head = (f"{about['cores']} cores of {about['cpu']}, Linux {about['kernel']}, commit {about['commit']}.",
            "", "| what | figure | spread | peer | ratio | goal | met |", "|---|---|---|---|---|---|---|")
    return "\n".join([*head, *("| " + " | ".join(markdown_cells(row)) + " |" for row in rows)]) + "\n"


def markdown_cells(row: Row) -> tuple[str, ...]:
    peer = row.peer if row.peer_figure is None else f"{row.peer} {row.peer_figure:.4g}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    return (row.name, f"{row.figure:.4g} {row.unit}", f"{row.spread:.0%}", peer, ratio, row.goal, met)


def add_arguments(parser):
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="also write them to FILE as a table for a README")
    parser.add_argument("--only", metavar="GROUP", action="append", help="run this group only (may be repeated)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each comparison (default 5)")
    parser.add_argument("--list", action="store_true", help="list the groups and end")


def main(args):
    from bindings.cli.bench_rows import GROUPS

    if args.list:
        print("\n".join(f"{name:12} {summary(group)}" for name, group in GROUPS.items()))
        return 0
    chosen = choose(args, GROUPS)
    packages.ensure("bench")
    if bazel.build(["//tests/bench/...", "//bindings/cli/demo/..."]) != 0:
        raise Problem("the benchmarks do not build")
    rows, failed = [], False
    for name in chosen:
        say(f"{name}: {summary(GROUPS[name])}")
        try:
            rows += GROUPS[name](args.rounds)
        except Problem as problem:  # the other groups still run
            failed = True
            say(f"bench {name}: {problem}")
    print(table(rows))
    if args.json:
        write(args.json, json.dumps(document(rows, machine()), indent=1) + "\n")
    if args.markdown:
        write(args.markdown, markdown(rows, machine()))
    return 1 if failed else 0


def summary(group):
    return group.__doc__.splitlines()[0]


def choose(args, groups):
    unknown = [name for name in args.only or [] if name not in groups]
    if unknown:
        raise Problem(f"bench: no group {unknown[0]!r}; groups: {', '.join(groups)}", status=2)
    if args.rounds < 1:
        raise Problem("bench: --rounds must be at least 1", status=2)
    return args.only or list(groups)


def write(path, text):
    try:
        with open(path, "w") as out:
            out.write(text)
    except OSError as error:
        raise Problem(f"bench: cannot write {path}: {error.strerror}") from None
