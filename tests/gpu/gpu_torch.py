"""Operators in PyTorch on a CUDA card: numbers, gradients, streams, memory and graphs, beside torch's own.

Run by ./lamella test --gpu. Errors are taken against double precision on random data; a sum of n
products in 16 bits may be off by its own rounding and by n roundings of f32.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bindings/torch"))

import lamella  # noqa: E402
import lamella.torch  # noqa: E402,F401
import ranks  # noqa: E402
import torch_samples  # noqa: E402

SEED = int(os.environ.get("LAMELLA_TEST_SEED", "0")) or int.from_bytes(os.urandom(3), "little")
OPS = torch.ops.lamella
ACTS = {
    "": lambda x: x,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
}
HALVES = [torch.bfloat16, torch.float16]

if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)


@pytest.fixture(autouse=True)
def seeded():
    print("LAMELLA_TEST_SEED=%d" % SEED)
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = False


def rand(*shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def first(result):
    return result[0] if isinstance(result, (tuple, list)) else result


def close(got, want, k, steep=1.0):
    """got: of one or two roundings to its dtype; want: in double, from the very same operands."""
    unit = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[got.dtype]
    largest = want.abs().max().item()
    bound = steep * (2 * unit * largest + k * 2.0**-23 * largest + 1e-6)
    off = (got.double() - want).abs().max().item()
    assert off <= bound, "off by %.3g, at most %.3g expected (largest %.3g)" % (off, bound, largest)


# -- numbers --


def moved(values, device):
    return [v.to(device) if isinstance(v, torch.Tensor) else v for v in values]


ALONE = [s for s in torch_samples.all_samples() if s[1] != "pack_weight"]


@pytest.mark.parametrize("name, sample", [s[1:] for s in ALONE], ids=[s[0] for s in ALONE])
def test_every_row_gives_what_the_cpu_gives(name, sample):
    arguments, keywords = sample()
    there = getattr(OPS, name)(*moved(arguments, "cuda"), **keywords)
    here = getattr(OPS, name)(*arguments, **keywords)
    pairs = zip(there, here) if isinstance(here, (tuple, list)) else [(there, here)]
    for a, b in pairs:
        if b.numel() == 0:
            assert a.numel() == 0
            continue
        assert a.device.type == "cuda" and a.shape == b.shape and a.dtype == b.dtype
        if a.dtype == torch.uint8:
            assert torch.equal(a.cpu(), b)
        else:
            torch.testing.assert_close(a.cpu(), b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", [(1, 4096, 4096), (64, 1024, 512), (300, 776, 264), (33, 65, 17)])
def test_linear_and_its_gradients(shape, dtype, act):
    m, k, n = shape
    x, w, b = rand(m, k, dtype=dtype), rand(n, k, dtype=dtype, scale=k**-0.5), rand(n, dtype=dtype)
    mine = [t.detach().clone().requires_grad_() for t in (x, w, b)]
    theirs = [t.detach().double().requires_grad_() for t in (x, w, b)]
    y = first(OPS.linear(*mine, act=act))
    z = ACTS[act](torch.nn.functional.linear(*theirs))
    close(y, z.detach(), k)
    dy = torch.randn_like(y)
    y.backward(dy)
    z.backward(dy.double())
    for ours, wanted, terms in zip(mine, theirs, (n, m, m)):
        close(ours.grad, wanted.grad, terms, steep=4)


@pytest.mark.parametrize("act, gated", [("gelu_tanh", 0), ("gelu", 0), ("silu", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("m", [1, 8, 256])
def test_ffn_and_its_gradients(m, dtype, act, gated):
    h, f = 512, 1024
    x = rand(m, h, dtype=dtype)
    w1, b1 = rand((1 + gated) * f, h, dtype=dtype, scale=h**-0.5), rand((1 + gated) * f, dtype=dtype)
    w2, b2 = rand(h, f, dtype=dtype, scale=f**-0.5), rand(h, dtype=dtype)
    mine = [t.detach().clone().requires_grad_() for t in (x, w1, b1, w2, b2)]
    theirs = [t.detach().double().requires_grad_() for t in (x, w1, b1, w2, b2)]
    y = first(OPS.ffn(*mine, act=act, gated=gated))
    z = torch.nn.functional.linear(*theirs[:3])
    gate, up = z.chunk(2, -1) if gated else (z, 1)
    want = torch.nn.functional.linear(ACTS[act](gate) * up, *theirs[3:])
    close(y, want.detach(), f, steep=4)
    dy = torch.randn_like(y)
    y.backward(dy)
    want.backward(dy.double())
    for ours, wanted in zip(mine, theirs):
        close(ours.grad, wanted.grad, f, steep=8)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
def test_fp8_with_scales():
    m, k, n = 64, 256, 128
    x, w = rand(m, k), rand(n, k, scale=k**-0.5)
    sx, sw = (t.abs().max().reshape(1) / 448 for t in (x, w))
    x8, w8 = (x / sx).to(torch.float8_e4m3fn), (w / sw).to(torch.float8_e4m3fn)
    number = 4 | 16 << 8  # kDLBfloat, 16 bits
    y = first(OPS.linear(x8, w8, None, sx, sw, dtype=number))
    close(y, (x8.double() * sx.double()) @ (w8.double() * sw.double()).T, k)


def test_views_that_are_not_aligned():
    wide, tall = rand(65, 131, dtype=torch.bfloat16), rand(40, 131, dtype=torch.bfloat16)
    x, w = wide[1:, 3:], tall[:, 3:]
    close(first(OPS.linear(x, w)), x.double() @ w.double().T, 128)
    columns = rand(128, 24, dtype=torch.bfloat16).T  # a weight whose rows are not its fast dimension
    close(first(OPS.linear(x, columns)), x.double() @ columns.double().T, 128)


# -- order and memory --


def busy(milliseconds):
    torch.cuda._sleep(int(milliseconds * 1.5e6))


def test_work_goes_to_torchs_current_stream():
    x, w = rand(512, 512), rand(512, 512)
    want = x.double() @ w.double().T
    torch.cuda.synchronize()
    side, late = torch.cuda.Stream(), torch.zeros_like(x)
    with torch.cuda.stream(side):
        busy(20)
        late.copy_(x)  # what runs before it on this stream takes time: nobody waits for it elsewhere
        y = first(OPS.linear(late, w))
    side.synchronize()
    close(y, want, 512)


def test_calls_return_before_the_work_is_done():
    x, w = rand(64, 64), rand(64, 64)
    OPS.linear(x, w)
    torch.cuda.synchronize()
    busy(200)
    done = torch.cuda.Event()
    OPS.linear(x, w)
    done.record()
    assert not done.query(), "a call waited for the device"
    torch.cuda.synchronize()


def test_two_streams_do_not_share_scratch():
    w1, w2 = rand(2048, 256, dtype=torch.bfloat16), rand(256, 2048, dtype=torch.bfloat16, scale=0.02)
    xs = [rand(128, 256, dtype=torch.bfloat16) for _ in range(2)]
    alone = [first(OPS.ffn(x, w1, None, w2, None, act="gelu")) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    for _ in range(20):
        found = []
        for x, stream in zip(xs, streams):
            with torch.cuda.stream(stream):
                found.append(first(OPS.ffn(x, w1, None, w2, None, act="gelu")))
        torch.cuda.synchronize()
        for y, want in zip(found, alone):
            assert torch.equal(y, want)


def test_calls_keep_no_memory():
    x, w = rand(256, 1024, dtype=torch.bfloat16), rand(1024, 1024, dtype=torch.bfloat16)
    for _ in range(3):
        OPS.linear(x, w, act="gelu")
    torch.cuda.synchronize()
    before, (free, _) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
    for _ in range(200):
        OPS.linear(x, w, act="gelu")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.mem_get_info()[0] >= free - (64 << 20)


# -- graphs --


def capture(step, warm=3):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        result = step()
    return graph, result


@pytest.mark.parametrize("name", ["linear", "ffn"])
@pytest.mark.parametrize("m", [1, 6, 128])
def test_forward_and_backward_replay_right_in_a_graph(name, m):
    h, f = 256, 512
    x = rand(m, h, dtype=torch.bfloat16).requires_grad_()
    w1 = rand(2 * f, h, dtype=torch.bfloat16, scale=h**-0.5).requires_grad_()
    w2 = rand(h, f, dtype=torch.bfloat16, scale=f**-0.5).requires_grad_()
    dy = rand(m, h if name == "ffn" else 2 * f, dtype=torch.bfloat16)

    def step():
        if name == "linear":
            y, wanted = first(OPS.linear(x, w1, act="gelu_tanh")), (x, w1)
        else:
            y, wanted = first(OPS.ffn(x, w1, None, w2, None, act="silu", gated=1)), (x, w1, w2)
        return [y.detach(), *torch.autograd.grad(y, wanted, dy)]

    graph, captured = capture(step)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(rand(m, h, dtype=torch.bfloat16))
            dy.copy_(rand(*dy.shape, dtype=torch.bfloat16))
        for tensor in captured:
            tensor.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        found = [t.clone() for t in captured]
        for got, want in zip(found, step()):
            torch.testing.assert_close(got, want, rtol=2.0**-7, atol=2.0**-7)


def test_the_first_call_of_all_in_a_graph_is_refused_or_right():
    """A shape that no call has had: no product is timed while capturing, and the context lives on."""
    x, w = rand(37, 392, dtype=torch.bfloat16), rand(152, 392, dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = first(OPS.linear(x, w))
    graph.replay()
    torch.cuda.synchronize()
    close(y, x.double() @ w.double().T, 392)


# -- torch.compile, mistakes --


def test_compiled_with_gradients():
    x, w = rand(16, 64).requires_grad_(), rand(32, 64).requires_grad_()
    compiled = torch.compile(lambda x, w: first(OPS.linear(x, w, act="gelu")).sum(), fullgraph=True)
    compiled(x, w).backward()
    got = x.grad.clone()
    x.grad = None
    torch.nn.functional.gelu(torch.nn.functional.linear(x, w)).sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-4, atol=1e-4)


def test_tensors_on_two_devices_are_refused_and_the_next_call_works():
    x, w = rand(4, 8), torch.randn(3, 8)
    with pytest.raises(Exception, match="device|cpu|cuda"):
        OPS.linear(x, w)
    close(first(OPS.linear(x, w.cuda())), x.double() @ w.cuda().double().T, 8)


def test_an_index_outside_of_the_vocabulary_gives_nan_there_alone():
    table, ids = rand(9, 8), torch.tensor([1, 99, 3], device="cuda")
    y = first(OPS.embedding_vocab(ids, table))
    assert y[1].isnan().all()
    assert torch.equal(y[0], table[1]) and torch.equal(y[2], table[3])


# -- ranks as threads of this process --


def on_ranks(n, function):
    import threading

    name, found = lamella.Group.new_id(), [None] * n

    def run(rank):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                with lamella.Group.create(name, rank, n, deadline_ms=20000) as group:
                    found[rank] = function(group)
                    torch.cuda.current_stream().synchronize()
        except BaseException as error:  # shown below
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_on_one_card_sum_a_split_layer(n, dtype):
    x, w, b = rand(6, 512, dtype=dtype), rand(256, 512, dtype=dtype, scale=0.05), rand(256, dtype=dtype)
    torch.cuda.synchronize()
    parts = [(x[:, i::n].contiguous(), w[:, i::n].contiguous()) for i in range(n)]
    torch.cuda.synchronize()

    def work(group):
        part = parts[group.rank]
        return first(OPS.linear_row(*part, b, group=group.handle))

    found = on_ranks(n, work)
    torch.cuda.synchronize()
    for y in found:
        close(y, torch.nn.functional.linear(x.double(), w.double(), b.double()), 512)
        assert torch.equal(y, found[0])


# -- pipelines --


def stages_of(n, width):
    layer = lambda: torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU())  # noqa: E731
    return [layer().cuda() for _ in range(n)]


@pytest.mark.parametrize("schedule", ["interleaved", "zbv"])
def test_a_pipeline_of_one_rank_gives_one_processs_gradients(schedule):
    width, rows = 96, 32
    stages, x, y = stages_of(2, width), rand(rows, width), rand(rows, width)
    whole, mse = torch.nn.Sequential(*stages), torch.nn.functional.mse_loss
    want = mse(whole(x), y)
    wanted = torch.autograd.grad(want, list(whole.parameters()))
    with lamella.torch.Pipeline(stages, schedule, 4, loss_fn=mse) as pipeline:
        for _ in range(3):
            whole.zero_grad()
            loss = pipeline.step(x, y)
        assert pipeline.report().device_times == 1
        assert pipeline.eval(x).device.type == "cuda"
    assert abs(loss - want.item()) <= 1e-5 * abs(want.item())
    for weight, gradient in zip(whole.parameters(), wanted):
        close(weight.grad, gradient.double(), 8 * rows)


def test_a_pipelines_step_comes_between_what_the_caller_queues():
    """A late input, and a gradient that is read at once: nobody else waits."""
    width, rows = 96, 32
    stages, x, y = stages_of(2, width), rand(rows, width), rand(rows, width)
    mse, late = torch.nn.functional.mse_loss, torch.zeros(rows, width, device="cuda")
    with lamella.torch.Pipeline(stages, "interleaved", 4, loss_fn=mse) as pipeline:
        pipeline.step(x, y)
        want = [weight.grad.clone() for weight in torch.nn.Sequential(*stages).parameters()]
        for stage in stages:
            stage.zero_grad()
        torch.cuda.synchronize()
        busy(20)
        late.copy_(x)
        pipeline.step(late, y)
        got = [weight.grad.clone() for weight in torch.nn.Sequential(*stages).parameters()]
    for a, b in zip(got, want):
        assert torch.equal(a, b)


# -- ranks as processes --


@pytest.mark.parametrize("case", ["own", "adopted"])
def test_two_processes_on_one_card_over_nccl(case):
    ranks.run("ranks_torch.py", case, 2, one_card=True)


def test_two_processes_on_one_card_read_each_others_memory():
    """Of torch's caching allocator."""
    ranks.run("ranks_torch.py", "shm", 2, one_card=True)


@pytest.mark.parametrize("case", ["own", "default", "adopted", "shm"])
@pytest.mark.parametrize("n", range(2, ranks.MOST + 1))
def test_a_rank_on_each_card(n, case):
    ranks.need(n, torch.cuda.device_count())
    ranks.run("ranks_torch.py", case, n)
