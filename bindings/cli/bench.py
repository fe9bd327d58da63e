"""`./lamella bench`: every speed Lamella promises, beside a peer measured in the same run.

Invariant: nothing here passes or fails a build; a row says what was measured, its spread, its peer and whether the goal was met.
Leaves measuring itself to the programs in tests/bench, and to bench_rows.py which of them make a row.
"""

import json
import os
import platform
import subprocess

from bindings.cli import bazel, gpu_bench, packages
from bindings.cli.bench_rows import GROUPS
from bindings.cli.bench_table import choose, document, markdown, summary, table, write
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


def add_arguments(parser):
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="also write them to FILE as a table for a README")
    parser.add_argument("--only", metavar="GROUP", action="append", help="run this group only (may be repeated)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each comparison (default 5)")
    parser.add_argument("--list", action="store_true", help="list the groups and end")
    parser.add_argument("--gpu", action="store_true", help="what ./lamella pack-gpu packed, on this machine's GPU")


def main(args):
    if args.gpu:
        return gpu_bench.main(args)
    if args.list:
        print("\n".join(f"{name:12} {summary(group)}" for name, group in GROUPS.items()))
        return 0
    chosen = choose(args, GROUPS)
    try:
        packages.ensure("bench")
    except Problem as problem:  # a peer that cannot be had takes no other rows along; what the build lacks, it says
        say(f"bench: {problem}")
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
