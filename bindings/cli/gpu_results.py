"""lamella gpu-results: writes tests/gpu/RESULTS.md from what test --gpu and bench --gpu kept.

Invariant: what no file says to have run on a GPU is called emulated (it passed on the stand-in for CUDA)
or compiled only, and what a stand-in answered never counts as run.
"""

import json
from pathlib import Path

from bindings.cli import bench_table, gpu, gpu_bench, projection
from bindings.cli.bench_figures import Row
from bindings.cli.common import ROOT, Problem

OUT = ROOT / "tests/gpu/RESULTS.md"
HEAD = """# What has run on a GPU

Written by `./lamella gpu-results` from the files that `./lamella test --gpu` and `./lamella bench --gpu` keep.
**emulated**: it passed on the stand-in for CUDA (tests/standin), on a CPU, and did not run on a GPU.
**compiled only**: it builds, and nothing has run it.
[overlap_emulated.svg](overlap_emulated.svg) shows, on the stand-in, sums of a layer's chunks beside products, a lane
for each stream; `./lamella bench --gpu` draws the same of a card in results/overlap.svg.
"""
EMULATED, COMPILED = "emulated", "compiled only"
PARTS = [  # what, a part of test --gpu, what it is until that has run
    ("every operator against double precision, poisoned outputs (f32, bf16, f16)", "ops_test", EMULATED),
    ("the same, memcheck", "memcheck", COMPILED),
    ("the same, racecheck", "racecheck", COMPILED),
    ("every schedule, 2 and 4 ranks as threads, stages of the library's rows, against one process",
     "rows_schedules_test", EMULATED),
    ("every schedule and tables by hand, shapes that vary, inputs that are kept", "runtime_schedules_test",
     EMULATED),
    ("pipelines of random tables", "pipeline_test", EMULATED),
    ("messages coded, and in parts over a tensor-parallel group", "form_test", EMULATED),
    ("weights that stages share", "weights_test", EMULATED),
    ("steps that fail end on all ranks", "failure_test", EMULATED),
    ("pipelines that are refused, and why", "refusal_test", EMULATED),
    ("whole steps of a pipeline in graphs, 1, 2 and 4 ranks, replayed with other data", "graph_test", EMULATED),
    ("ffn and linear_row with their sums, and a pipeline's step, replayed 1,000 times to the bit", "replay_test",
     EMULATED),
    ("what a step reports: the device's times", "times_test", EMULATED),
    ("two processes on one card: messages and sums by CUDA IPC, or through the host", "processes_test",
     EMULATED),
    ("10,000 mixed operations over two groups, 2, 3 and 4 ranks as threads", "mixed_test", EMULATED),
    ("the same, 2 and 3 ranks as processes on one card", "mixed_processes_test", EMULATED),
    ("processes on one card that are killed, or stopped, in each operation and in a pipeline's step", "loss_test",
     EMULATED),
    ("the demo, 1, 2 and 4 workers as processes on one card: losses and gradients of the CPU", "demo_test",
     EMULATED),
    ("NCCL: two processes on one card, killed and stopped ones, mixed operations, and a rank on each of 2 to 8 "
     "cards", "nccl_test", COMPILED),
    ("the PyTorch adapter on the card: numbers, streams, memory, graphs, pipelines, ranks as threads and processes",
     "torch", COMPILED),
    ("the JAX adapter on the card: numbers, pipelines, ranks as processes", "jax", COMPILED),
]


def add_arguments(parser):
    parser.add_argument("file", nargs="*", metavar="FILE",
                        help="of --json, or kept (default: build/gpu/results/*.json)")
    parser.add_argument("--out", default=str(OUT), help="where to write (default: tests/gpu/RESULTS.md)")


def main(args):
    paths = [Path(name) for name in args.file] or sorted((ROOT / "build/gpu/results").glob("*.json"))
    documents = [d for d in map(read, paths) if not gpu.is_standin(d["machine"])]
    Path(args.out).write_text(results(documents))
    print(args.out)
    return 0


def read(path):
    try:
        document = json.loads(path.read_text())
        document["machine"]["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem("gpu-results: %s: %r is not what was kept" % (path, error), 2) from None
    return document


def results(documents):
    tests = [d for d in documents if "parts" in d]
    benches = [d for d in documents if "rows" in d]
    text = HEAD + ("" if documents else "\nNothing has run on a GPU yet.\n")
    return "\n".join([text, *test_lines(tests), "", *bench_lines(benches)]) + "\n"


def about(document):
    m = document["machine"]
    return "%s; %s; %s; %s; commit %s" % (
        m["card"], m.get("nvidia-smi", ""), m.get("hosts", ""), m.get("date", ""), m["commit"])


def test_lines(documents):
    ran = {part["name"]: (part, d) for d in documents for part in d["parts"]}
    lines = ["## Tests", "", *("Ran: %s." % about(d) for d in documents)]
    lines += [""] * bool(documents) + ["| what | state |", "|---|---|"]
    known = [key for _, key, _ in PARTS]
    rows = PARTS + [(name, name, COMPILED) for name in ran if name not in known]
    return lines + ["| %s | %s |" % (what, state(ran.get(key), before)) for what, key, before in rows]


def state(found, before):
    if not found or not found[0]["passed"] + found[0]["failed"]:
        reasons = "; ".join(found[0]["skipped"]) if found else ""
        return before + (" (%s)" % reasons if reasons else "")
    part = found[0]
    return "ran: %d passed, %d failed%s" % (part["passed"], part["failed"], not_run(part["skipped"]))


def not_run(skips):
    """How many, and why: of lines `skip NAME: REASON`, each reason once."""
    reasons = dict.fromkeys(line.partition(": ")[2] for line in skips)
    return ", %d skipped (%s)" % (len(skips), "; ".join(reasons)) if skips else ""


def bench_lines(documents):
    lines = ["## Speed", ""]
    for document in documents:
        lines += ["Ran: %s." % about(document), ""]
        lines += bench_table.rows_markdown([Row(**row) for row in document["rows"]]).splitlines() + [""]
        lines += ["- %s failed: %s" % (f["group"], f["why"]) for f in document.get("failed", [])]
        steps = projection.project(document["rows"])
        if steps:
            lines += ["", "## Several GPUs, projected", "", projection.markdown(steps, document["machine"]["card"])]
    if not documents:
        lines += ["| what is measured | state |", "|---|---|"]
        lines += ["| %s | %s |" % (bench_table.summary(group), COMPILED) for group in gpu_bench.GROUPS.values()]
    return lines
