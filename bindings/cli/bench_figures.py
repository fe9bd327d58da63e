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
