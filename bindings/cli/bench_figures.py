"""Figures of bench programs, and the rows made of them.

A program prints lines `name figure unit spread`; it runs once a round, in turn with the others, so
that drift hits both sides of a ratio alike.
Invariant: a row says what was measured, its spread, its peer and whether the goal was met.
Leaves which programs make a row to bench_rows.py and bench_hosts.py.
"""

import statistics
import subprocess
from dataclasses import dataclass

from bindings.cli.common import ROOT, Problem, say


class Figure(float):
    """A figure of one round, and the spread that its program printed beside it (None: none)."""

    def __new__(cls, figure, spread=None):
        self = super().__new__(cls, figure)
        self.spread = spread
        return self


@dataclass
class Row:
    """One row of the table: INTERFACE form {name, figure, unit, spread, peer, peer_figure, ratio, goal, met, note}."""

    name: str
    figure: float | None         # None: it is a difference from a peer that is not on this machine
    unit: str
    spread: float | None         # (max - min) / median of the rounds; of one round its program's own, if it has one
    peer: str = ""               # what it is compared with; "" = nothing
    peer_figure: float | None = None
    ratio: float | None = None   # figure / peer_figure, median of the rounds
    goal: str = ""               # as text, e.g. "<= 1.03" or "0.95 to 1.05"
    met: bool | None = None      # None: no goal, or no peer on this machine
    note: str = ""


def judge(value: float, goal: str) -> bool:
    """Whether `value` meets a goal written as "<= 1.03", ">= 0.9" or "0.95 to 1.05"."""
    if " to " in goal:
        least, most = goal.split(" to ")
        return float(least) <= value <= float(most)
    sign, bound = goal.split()
    return value <= float(bound) if sign == "<=" else value >= float(bound)


def output(command: list[str], timeout: int = 300) -> str:
    """What a program prints that ends well."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError as missing:
        raise Problem(f"{command[0]} is not there") from missing
    except subprocess.TimeoutExpired as late:
        raise Problem(f"{command[0]} did not end within {timeout} s") from late
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise Problem(f"{' '.join(command[:4])} failed: {last[0]}")
    return done.stdout


def measure(command: list[str], timeout: int = 300) -> dict[str, Figure]:
    """Run a bench program once: {name: figure} of its lines."""
    lines = [line.split() for line in output(command, timeout).splitlines() if not line.startswith("#")]
    return {f[0]: Figure(f[1], own_spread(f)) for f in lines if len(f) >= 3 and is_number(f[1])}


def own_spread(fields: list[str]) -> float | None:
    """Of a line `name figure unit spread`, which may lack the last."""
    return float(fields[3]) if len(fields) > 3 and is_number(fields[3]) else None


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


def spread(values: list[float]) -> float | None:
    """(max - min) / median of the rounds. One round has none: its program's own, where it printed one."""
    if len(values) == 1:
        return getattr(values[0], "spread", None)
    middle = abs(statistics.median(values))
    return (max(values) - min(values)) / middle if middle else 0.0


def compare(name: str, unit: str, ours: list[float], peer: str, theirs: list[float] | None, goal: str = "", note: str = "") -> Row:
    """A row from paired rounds: medians, and the median of the rounds' ratios. Without `theirs` it stays, and is not judged."""
    if theirs is None:
        return Row(name, statistics.median(ours), unit, spread(ours), peer, goal=goal, note=note)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    return Row(name, statistics.median(ours), unit, spread(ours), peer, statistics.median(theirs), ratio, goal,
               judge(ratio, goal) if goal else None, note)


def alone(name: str, unit: str, ours: list[float], goal: str = "", note: str = "") -> Row:
    """A row whose goal, if any, is on the figure itself."""
    figure = statistics.median(ours)
    return Row(name, figure, unit, spread(ours), goal=goal, met=judge(figure, goal) if goal else None, note=note)
