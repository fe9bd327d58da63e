"""`./lamella bench`: every speed Lamella promises, beside a peer measured in the same run.

Invariant: nothing here passes or fails a build; a row says what was measured, its spread, its peer and whether the goal was met.
Leaves measuring itself to the programs in tests/bench, and to bench_rows.py which of them make a row.
"""

import json
import os
import platform
import subprocess
from dataclasses import asdict

from bindings.cli import bazel, packages
from bindings.cli.bench_figures import Row
from bindings.cli.bench_rows import GROUPS
from bindings.cli.common import ROOT, Problem, say

TARGETS = ["//tests/bench/...", "//bindings/cli/demo/...", "//bindings/torch/...", "//bindings/xla/..."]


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
    head = f"{about['cores']} cores of {about['cpu']}, Linux {about['kernel']}, commit {about['commit']}."
    return head + "\n\n" + rows_markdown(rows)


def rows_markdown(rows: list[Row]) -> str:
    head = ("| what | figure | spread | peer | ratio | goal | met |", "|---|---|---|---|---|---|---|")
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
    parser.add_argument("--gpu", action="store_true", help="what ./lamella pack-gpu packed, on this machine's GPU")


def main(args):
    if args.gpu:
        from bindings.cli import gpu_bench

        return gpu_bench.main(args)
    if args.list:
        print("\n".join(f"{name:12} {summary(group)}" for name, group in GROUPS.items()))
        return 0
    chosen = choose(args, GROUPS)
    packages.ensure("bench")
    if bazel.build(TARGETS) != 0:
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
