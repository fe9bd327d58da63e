"""lamella bench --gpu: the rows of the packed folder, measured on this machine's GPU.

Rows have the form of ./lamella bench. A group that fails leaves the others their turn.
Invariant: both sides of a ratio come from the same process, in turn.
Leaves measuring to tests/gpu/figures.py and call_bench.c.
"""

import json

from bindings.cli import bench_table, gpu, projection, streams
from bindings.cli.bench_figures import alone, compare, require
from bindings.cli.common import Problem, say

MOST_SECONDS = 300  # a group


def figures(command, **more):
    """{name: figures of the rounds} of a program's lines `name figure unit`."""
    status, text = gpu.run(command, MOST_SECONDS, **more)
    if status != 0:
        last = [line for line in text.strip().splitlines() if line.strip()][-1:] or ["no message"]
        raise Problem("status %d: %s" % (status, last[0]))
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and "/" in words[0]:
            found.setdefault(words[0], []).append(float(words[1]))
    return found


def in_torch(group, n, *more):
    return figures([gpu.python(), "-B", gpu.home() / "tests/gpu/figures.py", group, n, *more],
                   **gpu.host_libraries())


def gemm(n):
    """gemm 8192^3, bf16, random data, against torch.matmul"""
    f = in_torch("gemm", n)
    require(f, "gemm_8192/torch", "gemm_8192/lamella")
    return [compare("gemm 8192^3 bf16", "TFLOP/s", f["gemm_8192/lamella"], "torch.matmul",
                    f["gemm_8192/torch"], ">= 1.00", "rates")]


def ffn(n):
    """ffn bf16, forward and backward, against its products and bytes, and torch.compile"""
    f, rows = in_torch("ffn", n), []
    for name in ("swiglu_m8192", "gelu_m4096"):
        for part in ("forward", "backward"):
            ours, floor, theirs = (f["ffn_%s_%s/%s" % (name, part, side)]
                                   for side in ("lamella", "floor", "compiled"))
            what = "ffn %s %s" % (name, part)
            rows.append(compare(what, "us", ours, "its products, and bytes at a copy's rate", floor, "<= 1.02"))
            rows.append(compare(what, "us", ours, "torch.compile", theirs, "<= 1.00"))
    return rows


def decode(n):
    """ffn bf16 of few rows in a graph, against torch.compile in a graph"""
    f = in_torch("decode", n)
    return [compare("ffn decode M=%d" % m, "us", f["ffn_decode_m%d/lamella" % m], "torch.compile, in a graph",
                    f["ffn_decode_m%d/compiled" % m], "<= 1.00") for m in (1, 2, 4, 8, 16, 32, 64)]


def call(n):
    """what a call costs the host above cublasLtMatmul"""
    f = figures([gpu.home() / "bin/call_bench", n])
    require(f, "call/linear", "call/cublaslt")
    above = [a - b for a, b in zip(f["call/linear"], f["call/cublaslt"])]
    return [compare("call of linear, host", "us", f["call/linear"], "cublasLtMatmul", f["call/cublaslt"]),
            alone("call of linear above cublasLtMatmul, host", "us", above, "<= 5")]


def bandwidth(n):
    """add + RMSNorm and codecs, against a device copy"""
    f = in_torch("bandwidth", n)
    return [compare(name.partition("/")[2], "GB/s", values, "device copy", f["bandwidth/copy"], ">= 0.85")
            for name, values in f.items() if name != "bandwidth/copy"]


def chunks(n):
    """4 chunks against 1"""
    f = in_torch("chunks", n)
    return [compare("linear_row 8192^3 in 4 chunks", "us", f["chunks/4"], "in 1", f["chunks/1"], "<= 1.03")]


def fused(n):
    """all-reduce + add + RMSNorm, 2 ranks as threads, hidden 6144, in a graph"""
    f = in_torch("fused", n)
    return [alone("all-reduce + add + RMSNorm, M=6", "us", f["fused_m6/lamella"], "<= 7"),
            alone("all-reduce + add + RMSNorm, M=138", "us", f["fused_m138/lamella"])]


def tiles(n):
    """shares of layers for 1 to 8 ranks, in 1 to 8 chunks: from them a projection for several GPUs"""
    f = in_torch("tiles", n)
    return [alone(name, "us", f["tiles/" + name.replace(" ", "_")])
            for layer in projection.LAYERS for degree in (1, *projection.DEGREES) for c in projection.CHUNKS
            for name in [projection.row_name(layer, degree, c)]]


def overlap(n):
    """sums of chunks beside products, 2 ranks as threads: a picture of streams, results/overlap.svg"""
    trace, picture = (gpu.home() / "results" / name for name in ("overlap.trace", "overlap.svg"))
    trace.parent.mkdir(exist_ok=True)
    in_torch("overlap", n, trace)
    spans = streams.read(trace.read_text())
    picture.write_text(streams.svg(spans, "linear_row 8192^3, bf16, in 4 chunks: 2 ranks on one card"))
    say("drawn: %s" % picture)
    found = streams.beside(spans).values()
    whole, hidden = sum(us for us, _ in found), sum(us for _, us in found)
    return [alone("sums over ranks beside products, linear_row in 4 chunks", "%", [100 * hidden / max(whole, 1e-9)])]


GROUPS = {group.__name__: group
          for group in (gemm, call, bandwidth, fused, chunks, tiles, overlap, ffn, decode)}


def main(args):
    chosen, about, rows, failed = bench_table.choose(args, GROUPS), gpu.machine(), [], []
    for name in chosen:
        say("%s: %s" % (name, bench_table.summary(GROUPS[name])))
        try:
            rows += GROUPS[name](args.rounds)
        except (Problem, KeyError) as problem:
            failed.append({"group": name, "why": str(problem)})
            say("bench %s: %s" % (name, problem))
    document = dict(bench_table.document(rows, about), failed=failed)
    print(bench_table.table(rows))
    steps = projection.project(document["rows"])
    if steps:
        print("\n" + projection.text(steps, about["card"]))
    gpu.keep("bench.json", document)
    if args.json:
        bench_table.write(args.json, json.dumps(document, indent=1) + "\n")
    if args.markdown:
        bench_table.write(args.markdown, bench_table.rows_markdown(rows))
    return 1 if failed else 0
