"""What ./lamella bench --gpu measures in PyTorch: Lamella's operators on the card beside torch's own.

    python figures.py GROUP ROUNDS [FILE]    prints `name figure unit`, a line for each round

Times are of the device (CUDA events) over many calls, both sides of a comparison in turn. Data are
random: zeros are multiplied faster.
"""

import sys
import threading

import torch
from torch.nn import functional

import lamella
import lamella.torch  # noqa: F401
from bindings.cli import projection

OPS = torch.ops.lamella
BF16 = torch.bfloat16
FFNS = {  # name: (M, H, F, act, gated)
    "swiglu_m8192": (8192, 8192, 28672, "silu", 1),
    "gelu_m4096": (4096, 4096, 16384, "gelu_tanh", 0),
}
EPS = 1e-5


def rand(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(BF16)


def first(result):
    return result[0] if isinstance(result, (tuple, list)) else result


def show(name, values, unit="us"):
    for value in values:
        print("%s %.6g %s" % (name, value, unit), flush=True)


def time_once(call, n):
    """Microseconds a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(n):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1000 / n


def in_turn(sides, rounds, n, warm=3):
    """{side: times of the rounds}"""
    for call in sides.values():
        for _ in range(warm):
            call()
    torch.cuda.synchronize()
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            found[name].append(time_once(call, n))
    return found


def graph_of(call, n):
    """n calls as one graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(n):
            call()
    return graph


def copy_rate(rounds):
    """Bytes read and written a microsecond."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    return [2 * a.numel() / t for t in in_turn({"copy": lambda: b.copy_(a)}, rounds, 10)["copy"]]


# -- groups --


def gemm(rounds):
    x, w = rand(8192, 8192), rand(8192, 8192)
    out = torch.empty(8192, 8192, device="cuda", dtype=BF16)
    sides = {
        "gemm_8192/torch": lambda: torch.matmul(x, w.T, out=out),
        "gemm_8192/lamella": lambda: OPS.linear(x, w),
    }
    for name, times in in_turn(sides, rounds, 10).items():
        show(name, [2 * 8192**3 / t / 1e6 for t in times], "TFLOP/s")


def plain_ffn(x, w1, w2, act, gated):
    z = functional.linear(x, w1)
    if gated:
        gate, up = z.chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, w2)
    return functional.linear(functional.gelu(z, approximate="tanh"), w2)


def ffn_floor(x, w1, w2, gated, rate):
    """{part: (its products alone, microseconds of its elementwise bytes)}: the saved pre-activation
    z and the hidden h are what is read and written beside the products' own operands."""
    m, f = x.shape[0], w2.shape[1]
    dy, h = torch.randn_like(x), rand(m, f)
    dz = rand(m, w1.shape[0])
    forward = lambda: (x @ w1.T, h @ w2.T)  # noqa: E731
    backward = lambda: (dy @ w2, dy.T @ h, dz @ w1, dz.T @ x)  # noqa: E731
    words = {"forward": 3 if gated else 1, "backward": 6 if gated else 2}
    moved = {part: n * m * f * 2 / rate for part, n in words.items()}
    return {"forward": (forward, moved["forward"]), "backward": (backward, moved["backward"])}


def ffn(rounds):
    torch._functorch.config.donated_buffer = False  # a backward is timed many times
    rate = sorted(copy_rate(rounds))[rounds // 2]
    for name, (m, h, f, act, gated) in FFNS.items():
        x = rand(m, h).requires_grad_()
        w1 = rand((1 + gated) * f, h, scale=h**-0.5).requires_grad_()
        w2 = rand(h, f, scale=f**-0.5).requires_grad_()
        compiled = torch.compile(plain_ffn)
        calls = {
            "lamella": lambda: first(OPS.ffn(x, w1, None, w2, None, act=act, gated=gated, save=1)),
            "compiled": lambda: compiled(x, w1, w2, act, gated),
        }
        floor = ffn_floor(x.detach(), w1.detach(), w2.detach(), gated, rate)
        dy = rand(m, h)
        kept = {side: call() for side, call in calls.items()}
        backward = {
            side: lambda y=y: torch.autograd.grad(y, (x, w1, w2), dy, retain_graph=True)
            for side, y in kept.items()
        }
        for part, sides in (("forward", calls), ("backward", backward)):
            products, moved = floor[part]
            times = in_turn({**sides, "floor": products}, rounds, 5)
            times["floor"] = [t + moved for t in times["floor"]]
            for side, values in times.items():
                show("ffn_%s_%s/%s" % (name, part, side), values)
        del kept, backward
        torch.cuda.empty_cache()


def decode(rounds):
    h, f = 8192, 28672
    w1, w2 = rand(2 * f, h, scale=h**-0.5), rand(h, f, scale=f**-0.5)
    for m in (1, 2, 4, 8, 16, 32, 64):
        x = rand(m, h)
        torch._dynamo.reset()
        compiled = torch.compile(plain_ffn)
        with torch.inference_mode():
            sides = {
                "compiled": graph_of(lambda: compiled(x, w1, w2, "silu", 1), 5).replay,
                "lamella": graph_of(
                    lambda: OPS.ffn(x, w1, None, w2, None, act="silu", gated=1), 5
                ).replay,
            }
            for side, times in in_turn(sides, rounds, 10).items():
                show("ffn_decode_m%d/%s" % (m, side), [t / 5 for t in times])


def bandwidth(rounds):
    """Shares of a device copy's rate."""
    t, k = 16384, 8192
    x, res, g = rand(t, k), rand(t, k), rand(k)
    number = 4 | 16 << 8  # bf16
    coded = {c: OPS.codec_pack(x, codec=c) for c in (2, 4)}
    sides = {"add_rmsnorm": (lambda: OPS.all_reduce_add_rmsnorm(x, res, g, eps=EPS), 8 * t * k)}
    for c, name in ((2, "fp8"), (4, "int8")):
        both = 2 * t * k + coded[c].numel()
        sides["codec_pack_" + name] = (lambda c=c: OPS.codec_pack(x, codec=c), both)
        unpack = lambda c=c: OPS.codec_unpack(coded[c], codec=c, cols=k, dtype=number)  # noqa: E731
        sides["codec_unpack_" + name] = (unpack, both)
    a = torch.empty(8 * t * k // 2, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    calls = {name: call for name, (call, _) in sides.items()}
    times = in_turn({"copy": lambda: b.copy_(a), **calls}, rounds, 20)
    show("bandwidth/copy", [2 * a.numel() / v / 1e3 for v in times["copy"]], "GB/s")
    for name, (_, moved) in sides.items():
        show("bandwidth/" + name, [moved / v / 1e3 for v in times[name]], "GB/s")


def chunks(rounds):
    x, w = rand(8192, 8192), rand(8192, 8192)
    with lamella.Group.create(lamella.Group.new_id(), 0, 1) as group:
        sides = {
            "chunks/%d" % n: lambda n=n: OPS.linear_row(x, w, group=group.handle, chunks=n)
            for n in (1, 4)
        }
        for name, times in in_turn(sides, rounds, 10).items():
            show(name, times)


def share_of(layer, degree, group):
    """A rank's part of it, as a function of chunks."""
    x, w2 = rand(layer.rows, layer.k // degree), rand(layer.n, layer.k // degree, scale=layer.k**-0.5)
    if layer.kind == "linear":
        return lambda c: OPS.linear_row(x, w2, group=group.handle, chunks=c)
    x, w1 = rand(layer.rows, layer.n), rand(layer.k // degree, layer.n, scale=layer.n**-0.5)
    return lambda c: OPS.ffn(x, w1, None, w2, None, act="gelu_tanh", group=group.handle, chunks=c)


def tiles(rounds):
    """Products alone, for projection.py: a group of one sums nothing, and its sum's last pass is there."""
    with lamella.Group.create(lamella.Group.new_id(), 0, 1) as group, torch.inference_mode():
        for layer in projection.LAYERS:
            for degree in (1, *projection.DEGREES):
                call = share_of(layer, degree, group)
                sides = {
                    projection.row_name(layer, degree, c): lambda c=c: call(c) for c in projection.CHUNKS
                }
                for name, times in in_turn(sides, rounds, 5).items():
                    show("tiles/" + name.replace(" ", "_"), times)


# -- two ranks as threads --

CALLS = 20


def capture_rank(group, shape, meet, graphs):
    """A graph of CALLS calls on this thread's own stream; nobody allocates while another captures."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.inference_mode():
        x, res, g = rand(*shape), rand(*shape), rand(shape[1])
        call = lambda: OPS.all_reduce_add_rmsnorm(x, res, g, group=group.handle, eps=EPS)  # noqa: E731
        for _ in range(5):
            call()
        stream.synchronize()
        meet.wait()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        for _ in range(CALLS):
            call()
        graph.capture_end()
        graphs[group.rank] = (graph, stream)
        meet.wait()


def fused_rank(name, rank, shape, rounds, meet, graphs, times):
    with lamella.Group.create(name, rank, 2, deadline_ms=20000) as group:
        capture_rank(group, shape, meet, graphs)
        graph, stream = graphs[rank]
        with torch.cuda.stream(stream):
            for _ in range(3):
                graph.replay()
            stream.synchronize()
            for _ in range(rounds):
                meet.wait()
                times[rank].append(time_once(graph.replay, 20) / CALLS)
        meet.wait()
    del graphs[rank]


def fused(rounds):
    for m in (6, 138):
        meet, graphs, times = threading.Barrier(2, timeout=60), {}, [[], []]
        name = lamella.Group.new_id()
        ranks = [
            threading.Thread(target=fused_rank, args=(name, r, (m, 6144), rounds, meet, graphs, times))
            for r in range(2)
        ]
        [rank.start() for rank in ranks]
        [rank.join() for rank in ranks]
        if any(len(each) != rounds for each in times):
            sys.exit("the ranks did not measure")
        show("fused_m%d/lamella" % m, [max(pair) for pair in zip(*times)])


def layer_rank(name, rank, meet):
    """A layer in 4 chunks: once unseen, as products are timed then, and once for the trace."""
    with lamella.Group.create(name, rank, 2, deadline_ms=60000) as group, torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            x, w = rand(8192, 4096), rand(8192, 4096)
            for _ in range(2):
                OPS.linear_row(x, w, group=group.handle, chunks=4)
                stream.synchronize()
                meet.wait()
                meet.wait()


def overlap(rounds, path):
    """A trace of what ran on the card's streams."""
    from torch.profiler import ProfilerActivity, profile

    meet, name = threading.Barrier(3, timeout=60), lamella.Group.new_id()
    ranks = [threading.Thread(target=layer_rank, args=(name, r, meet)) for r in range(2)]
    [rank.start() for rank in ranks]
    meet.wait()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        meet.wait()
        meet.wait()
        torch.cuda.synchronize()
    meet.wait()
    [rank.join() for rank in ranks]
    seen.export_chrome_trace(path)


GROUPS = {f.__name__: f for f in (gemm, ffn, decode, bandwidth, chunks, tiles, fused, overlap)}

if __name__ == "__main__":
    torch.manual_seed(0)
    GROUPS[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
