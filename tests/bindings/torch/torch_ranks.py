"""One rank of a group: runs the cases named on the command line, and says `ok CASE` for each.

    ./lamella run -n 3 python torch_ranks.py CASE ...

Every rank makes the same whole problem from LAMELLA_TEST_SEED, solves it alone in f64 with plain
torch, takes its own part, and compares what the group gives for that part, gradients included.
"""

import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bindings/python")]

import torch  # noqa: E402

import lamella.torch  # noqa: E402
from lamella import library  # noqa: E402

CASES = {}
ops = torch.ops.lamella
F = torch.nn.functional
T, K, N, WIDTH = 11, 10, 7, 9  # tokens, in, out, ffn width: nothing divides evenly
torch.set_num_threads(1)


def case(function):
    CASES[function.__name__] = function
    return function


def mine(t, dim, group, gated=False):
    """This rank's part of a whole tensor, contiguous."""
    total = t.shape[dim] // (2 if gated else 1)
    pieces = library.shard(total, group.rank, group.size, gated=gated)
    return torch.cat([t.narrow(dim, b, e - b) for b, e in pieces], dim).detach().contiguous()


def check(*pairs):
    """Sums of at most 64 products in f32, of terms below 64, through at most three layers."""
    for ours, whole in pairs:
        torch.testing.assert_close(ours.double(), whole, rtol=1e-4, atol=3 * 64 * 64 * 2.0**-24)


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def whole(*shapes):
    return [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in shapes]


def as_f32(*tensors):
    return leaves(*[t.float() for t in tensors])


def weigh(y):
    """A loss whose gradient is different everywhere."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()


def own_loss(y, whole_y, dim, group):
    """The part of `weigh(whole_y)` that this rank's y makes up."""
    weights = torch.linspace(-1, 1, whole_y.numel(), dtype=torch.float64).reshape(whole_y.shape)
    return (y * mine(weights, dim, group).to(y.dtype)).sum()


# -- linear --


@case
def linear_col(group):
    x, w, b = whole((T, K), (N, K), (N,))
    y = F.gelu(F.linear(x, w, b))
    weigh(y).backward()
    mx, mw, mb = as_f32(x, mine(w, 0, group), mine(b, 0, group))
    my = ops.linear_col(mx, mw, mb, act="gelu", group=group.handle, save=group.size % 2)[0]
    own_loss(my, y, 1, group).backward()
    check((my, mine(y, 1, group)), (mx.grad, x.grad))
    check((mw.grad, mine(w.grad, 0, group)), (mb.grad, mine(b.grad, 0, group)))


@case
def linear_col_gathered(group):
    x, w, b = whole((T, K), (N, K), (N,))
    y = F.linear(x, w, b)
    weigh(y).backward()
    mx, mw, mb = as_f32(x, mine(w, 0, group), mine(b, 0, group))
    my = ops.linear_col(mx, mw, mb, group=group.handle, gather=1, total=N)[0]
    weigh(my).backward()
    check((my, y), (mx.grad, x.grad), (mw.grad, mine(w.grad, 0, group)))


@case
def linear_row(group):
    x, w, b = whole((T, K), (N, K), (N,))
    y = F.linear(x, w, b)
    weigh(y).backward()
    mx, mw, mb = as_f32(mine(x, 1, group), mine(w, 1, group), b)
    my = ops.linear_row(mx, mw, mb, group=group.handle)
    weigh(my).backward()
    check((my, y), (mx.grad, mine(x.grad, 1, group)))
    check((mw.grad, mine(w.grad, 1, group)), (mb.grad, b.grad))


@case
def linear_row_of_a_whole_x(group):
    x, w, b = whole((T, K), (N, K), (N,))
    y = F.linear(x, w, b)
    weigh(y).backward()
    mx, mw, mb = as_f32(x, mine(w, 1, group), b)
    my = ops.linear_row(mx, mw, mb, group=group.handle, split=0, total=K)
    weigh(my).backward()
    check((my, y), (mx.grad, x.grad), (mw.grad, mine(w.grad, 1, group)))


@case
def sequence_parallel_layers(group):
    """x [T_r, K] -> column -> row -> y [T_r, N]; biases of the row split see every token."""
    x, w1, w2, b2 = whole((T, K), (WIDTH, K), (N, WIDTH), (N,))
    y = F.linear(F.silu(F.linear(x, w1)), w2, b2)
    weigh(y).backward()
    mx, mw1, mw2, mb2 = as_f32(mine(x, 0, group), mine(w1, 0, group), mine(w2, 1, group), b2)
    h = ops.linear_col(mx, mw1, act="silu", group=group.handle, seq=T)[0]
    my = ops.linear_row(h, mw2, mb2, group=group.handle, seq=T)
    own_loss(my, y, 0, group).backward()
    check((my, mine(y, 0, group)), (mx.grad, mine(x.grad, 0, group)))
    check((mw1.grad, mine(w1.grad, 0, group)), (mw2.grad, mine(w2.grad, 1, group)))
    check((mb2.grad, b2.grad))


def ffn_parts(group, gated):
    rows = WIDTH * (1 + gated)
    x, w1, b1, w2, b2 = whole((T, K), (rows, K), (rows,), (N, WIDTH), (N,))
    z = F.linear(x, w1, b1)
    h = F.silu(z[:, :WIDTH]) * z[:, WIDTH:] if gated else F.gelu(z)
    y = F.linear(h, w2, b2)
    weigh(y).backward()
    parts = [mine(w1, 0, group, gated), mine(b1, 0, group, gated), mine(w2, 1, group), b2]
    grads = [mine(w1.grad, 0, group, gated), mine(b1.grad, 0, group, gated)]
    return x, y, as_f32(*parts), [*grads, mine(w2.grad, 1, group), b2.grad]


def run_ffn(group, gated, save, compiled=False):
    x, y, parts, grads = ffn_parts(group, gated)
    act = "silu" if gated else "gelu"
    (mx,) = as_f32(x)

    def layer(x, *weights):
        return ops.ffn(x, *weights, group=group.handle, act=act, gated=gated, save=save)[0]

    layer = torch.compile(layer, fullgraph=True, dynamic=True) if compiled else layer
    my = layer(mx, *parts)
    weigh(my).backward()
    check((my, y), (mx.grad, x.grad), *zip([p.grad for p in parts], grads))


@case
def ffn(group):
    run_ffn(group, gated=0, save=1)
    run_ffn(group, gated=0, save=0)


@case
def ffn_gated(group):
    run_ffn(group, gated=1, save=1)
    run_ffn(group, gated=1, save=0)


@case
def ffn_compiled(group):
    run_ffn(group, gated=1, save=1, compiled=True)


@case
def ffn_for_its_input_only(group):
    x, y, parts, _ = ffn_parts(group, 0)
    (mx,) = as_f32(x)
    frozen = [p.detach() for p in parts]
    weigh(ops.ffn(mx, *frozen, group=group.handle, act="gelu")[0]).backward()
    check((mx.grad, x.grad))


# -- collectives and regions: every rank's x, and the sum of all ranks' losses --


def everyones(group, shape_of):
    """x of every rank, as leaves in f64."""
    return whole(*[shape_of(r) for r in range(group.size)])


def length(r, group):
    [(begin, end)] = library.shard(T, r, group.size)
    return end - begin


def compare(group, xs, results, run):
    """results[r]: what rank r should get from everyone's xs; losses differ from rank to rank."""
    sum((r + 1) * weigh(y) for r, y in enumerate(results)).backward()
    (x,) = as_f32(xs[group.rank])
    y = run(x)
    ((group.rank + 1) * weigh(y)).backward()
    check((y, results[group.rank].detach()), (x.grad, xs[group.rank].grad))


@case
def all_reduce(group):
    xs = everyones(group, lambda r: (T, K))
    compare(group, xs, [sum(xs)] * group.size, lambda x: ops.all_reduce(x, group=group.handle))


@case
def all_gather(group):
    for dim in (0, 1):
        xs = everyones(group, lambda r: (length(r, group), 4)[:: 1 - 2 * dim])
        compare(
            group,
            xs,
            [torch.cat(xs, dim)] * group.size,
            lambda x: ops.all_gather(x, group=group.handle, dim=dim, total=T),
        )


@case
def reduce_scatter(group):
    xs = everyones(group, lambda r: (4, T))
    total = sum(xs)
    parts = torch.split(total, [length(r, group) for r in range(group.size)], 1)
    compare(group, xs, parts, lambda x: ops.reduce_scatter(x, group=group.handle, dim=1))


@case
def broadcast(group):
    root = group.size - 1
    xs = everyones(group, lambda r: (3, 4))
    found = [xs[root] * 1 + 0 * x for x in xs]
    compare(group, xs, found, lambda x: ops.broadcast(x, group=group.handle, root=root))


@case
def reduce(group):
    """Only the root's result counts, so only it goes into the loss."""
    root = group.size - 1
    xs = everyones(group, lambda r: (3, 4))
    weigh(sum(xs)).backward()
    (x,) = as_f32(xs[group.rank])
    y = ops.reduce(x, group=group.handle, root=root)
    weigh(y).backward()
    if group.rank == root:
        check((y, sum(xs).detach()))
    check((x.grad, xs[group.rank].grad))


@case
def regions(group):
    """copy_to_group ... reduce_from_group around a split layer, as Megatron-LM has it."""
    x, w1, w2 = whole((T, K), (WIDTH, K), (N, WIDTH))
    y = F.linear(F.linear(x, w1), w2)
    weigh(y).backward()
    mx, mw1, mw2 = as_f32(x, mine(w1, 0, group), mine(w2, 1, group))
    h = F.linear(ops.copy_to_group(mx, group=group.handle), mw1)
    my = ops.reduce_from_group(F.linear(h, mw2), group=group.handle)
    weigh(my).backward()
    check((my, y), (mx.grad, x.grad), (mw1.grad, mine(w1.grad, 0, group)))


@case
def gather_and_scatter_to_group(group):
    (x,) = whole((T, K))
    weigh(x * 2).backward()
    (mx,) = as_f32(x)
    part = ops.scatter_to_group(mx, group=group.handle)
    check((part, mine(x, 1, group)))
    weigh(ops.gather_from_group(part * 2, group=group.handle, total=K)).backward()
    check((mx.grad, x.grad))


@case
def gather_and_scatter_sequence(group):
    """Each rank's loss sees the whole sequence: gradients add up over the ranks."""
    (x,) = whole((T, K))
    weigh(x * 2).backward()
    (mx,) = as_f32(x)
    part = ops.scatter_sequence(mx, group=group.handle)
    check((part, mine(x, 0, group)))
    weigh(ops.gather_sequence(part * 2, group=group.handle, total=T)).backward()
    check((mx.grad, x.grad * group.size))


# -- transfer --


def through_ranks(group, x, w, token, micro):
    """rank 0: x w, sent on; others: what came, times w, sent on; the last one's loss. Tokens give
    autograd its edges."""
    h = x
    if group.rank > 0:
        h, token = ops.recv_activation(
            token, group=group.handle, peer=group.rank - 1, tag=micro, shape=[T, K]
        )
    h = F.linear(h, w)
    if group.rank + 1 < group.size:
        token = ops.send_activation(h, token, group=group.handle, peer=group.rank + 1, tag=micro)
        return token.sum()
    return weigh(h) + 0 * token.sum()


def pipeline(group, function):
    x, *ws = whole((T, K), *[(K, K)] * group.size)
    h = x
    for w in ws:
        h = F.linear(h, w)
    (weigh(h) * 2).backward()
    mx, mw = as_f32(x, ws[group.rank])
    for micro in range(2):
        function(group, mx, mw, torch.zeros(1, requires_grad=True), micro).backward()
    check((mw.grad, ws[group.rank].grad))
    if group.rank == 0:
        check((mx.grad, x.grad))


@case
def transfer(group):
    pipeline(group, through_ranks)


@case
def transfer_compiled(group):
    def call(group, x, w, token, micro):
        def stage(x, w, token):
            return through_ranks(group, x, w, token, micro)

        return torch.compile(stage, fullgraph=True)(x, w, token)

    pipeline(group, call)


@case
def opcheck_transfer(group):
    """Rank 0 tries the operators on; rank 1 serves until it is told to stop."""
    x, token, end = torch.randn(3, 4), torch.zeros(1), torch.full((3, 4), 7.0)
    there = dict(group=group.handle, peer=1 - group.rank)
    if group.rank == 0:
        torch.library.opcheck(ops.send_activation.default, (x, token), there)
        ops.send_activation(end, token, **there)
        wanted = dict(there, shape=[3, 4])
        torch.library.opcheck(ops.recv_activation.default, (token,), wanted)
        return
    while not torch.equal(ops.recv_activation(token, **there, shape=[3, 4])[0], end):
        pass
    try:
        while True:
            ops.send_activation(x, token, **there)
    except RuntimeError as error:
        assert "rank 0" in str(error), error


# -- modules --


class Llama(torch.nn.Module):
    """An unsplit feed-forward block with the names that Llama has."""

    def __init__(self):
        super().__init__()
        self.gate_proj = torch.nn.Linear(K, WIDTH, bias=False)
        self.up_proj = torch.nn.Linear(K, WIDTH, bias=False)
        self.down_proj = torch.nn.Linear(WIDTH, K, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(K, WIDTH), torch.nn.Linear(WIDTH, K)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


def same_module(group, unsplit, split):
    """Loads, runs, steps and saves: the split module does what the unsplit one does in f64. The
    unsplit one is made first: ranks draw different numbers for their parts."""
    state = {name: t.clone() for name, t in unsplit.state_dict().items()}
    split.load_state_dict(state)
    found = lamella.torch.whole_state_dict(split)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    unsplit.double()
    torch.manual_seed(torch.initial_seed())  # the ranks' parts took different numbers
    (x,) = whole((T, K))
    (mx,) = as_f32(x)
    for module, given in ((unsplit, x), (split, mx)):
        sgd = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            sgd.zero_grad()
            weigh(module(given)).backward()
            sgd.step()
    check((mx.grad, x.grad))
    found, state = lamella.torch.whole_state_dict(split), unsplit.state_dict()
    check(*[(found[name], state[name]) for name in state])


@case
def column_parallel_linear(group):
    unsplit = torch.nn.Linear(K, N)
    split = lamella.torch.ColumnParallelLinear(K, N, group=group, gather_output=True)
    same_module(group, unsplit, split)


@case
def row_parallel_linear(group):
    unsplit = torch.nn.Linear(K, N)
    split = lamella.torch.RowParallelLinear(K, N, group=group, input_is_parallel=False)
    same_module(group, unsplit, split)


@case
def column_then_row(group):
    unsplit = torch.nn.Sequential(
        torch.nn.Linear(K, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, N)
    )
    split = torch.nn.Sequential(
        lamella.torch.ColumnParallelLinear(K, WIDTH, group=group, act="gelu"),
        torch.nn.Identity(),
        lamella.torch.RowParallelLinear(WIDTH, N, group=group),
    )
    same_module(group, unsplit, split)


@case
def parallel_ffn(group):
    same_module(group, Plain(), lamella.torch.ParallelFFN(K, WIDTH, group=group))


@case
def parallel_ffn_gated(group):
    names = "gate_proj", "up_proj", "down_proj"
    more = dict(gated=True, bias=False, names=names, group=group)
    same_module(group, Llama(), lamella.torch.ParallelFFN(K, WIDTH, "silu", **more))


@case
def packed_weights(group):
    """Used where gradients are off, and follow their weights; the state has none of them."""
    modules = [
        lamella.torch.ColumnParallelLinear(K, N, group=group, act="gelu"),
        lamella.torch.ColumnParallelLinear(K, N, group=group, transposed=True),
        lamella.torch.RowParallelLinear(K, N, group=group, input_is_parallel=False),
        lamella.torch.ParallelFFN(K, WIDTH, "silu", gated=True, group=group),
    ]
    for module in modules:
        torch.manual_seed(int(os.environ["LAMELLA_TEST_SEED"]))
        x = torch.randn(T, K)
        names = set(module.state_dict())
        plain = module(x)
        lamella.torch.pack(torch.nn.Sequential(module))
        assert module(x).requires_grad and set(module.state_dict()) == names
        with torch.no_grad():
            assert module.operand(module.weights[0], x).dtype == torch.uint8
            assert module.operand(module.weights[0], x[:1]).dtype == torch.float32
            check((module(x), plain.double()), (module(x[:1]), plain[:1].double()))
            compiled = torch.compile(module, fullgraph=True)
            check((compiled(x), plain.double()))
            for weight in module.parameters():
                weight.mul_(2)
        changed = module(x)
        with torch.no_grad():
            check((module(x), changed.detach().double()))
            for weight in module.parameters():
                weight.data.mul_(2)  # which torch does not note
            module.eval()
            check((compiled(x), module.unpack()(x).double()))
        with torch.inference_mode():
            made = lamella.torch.RowParallelLinear(K, N, group=group, input_is_parallel=False)
            packed = made.pack()(x)
        made.eval()
        with torch.no_grad():
            check((packed, made(x).double()), (packed, made.unpack()(x).double()))


class EveryLayer(torch.nn.Module):
    """All layers that have weights; the weights are bf16."""

    def __init__(self, group):
        super().__init__()
        bf16 = dict(group=group, dtype=torch.bfloat16)
        whole, layer = dict(gather_output=True, **bf16), lamella.torch
        self.embedding = layer.VocabParallelEmbedding(3 * group.size + 1, K, **bf16)
        self.ffn = layer.ParallelFFN(K, WIDTH, "silu", gated=True, **bf16)
        self.column = layer.ColumnParallelLinear(K, WIDTH, act="gelu", **bf16)
        self.row = layer.RowParallelLinear(WIDTH, K, **bf16)
        self.turned = layer.ColumnParallelLinear(K, N, transposed=True, **whole)

    def forward(self, ids):
        h = self.ffn(self.embedding(ids))
        return self.turned(self.row(self.column(h)))


def each_micro_batch(group, n=6):
    vocab = 3 * group.size + 1
    torch.manual_seed(int(os.environ["LAMELLA_TEST_SEED"]))
    return [torch.randint(vocab, (T,)) for _ in range(n)]


def differ(ours, theirs):
    """How far apart, of the largest element."""
    largest = theirs.abs().max().clamp_min(1e-30)
    return float((ours.double() - theirs.double()).abs().max() / largest)


@case
def gradients_added_up_in_f32(group):
    """main_grad is the sum, in f64, of each micro-batch's gradient in f32; .grad is left alone. Each
    is what .grad would be but for its rounding to bf16, whose sum is further off."""
    model = EveryLayer(group)
    named, micros = dict(model.named_parameters()), each_micro_batch(group)

    def backward(ids):
        weigh(model(ids).float()).backward()

    rounded = []
    for ids in micros:
        backward(ids)
        rounded.append({name: p.grad for name, p in named.items()})
        model.zero_grad()
    assert len(lamella.torch.accumulate_grads(model)) == len(named)
    exact = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in named.items()}
    for ids, grads in zip(micros, rounded):
        backward(ids)
        for name, p in named.items():
            assert p.grad is None and p.main_grad.dtype == torch.float32, name
            assert differ(grads[name], p.main_grad) <= 2.0**-8, name
            exact[name] += p.main_grad.double()
            p.main_grad.zero_()

    own = torch.zeros(model.row.bias.numel() + 1)[1:]  # someone's part of one buffer
    model.row.bias.main_grad = own
    for ids in micros:
        backward(ids)
    assert own.data_ptr() == model.row.bias.main_grad.data_ptr() and own.any()
    for name, p in named.items():
        assert differ(p.main_grad, exact[name]) <= len(micros) * 2.0**-23, name
    in_bf16 = {name: sum(grads[name] for grads in rounded) for name in named}
    assert max(differ(in_bf16[name], exact[name]) for name in named) > 2.0**-10


@case
def gradients_added_up_stay_so_when_only_some_are_asked_for(group):
    """A frozen weight beside one that accumulates, an input without a gradient, a checkpoint."""
    x = torch.randn(T, K, dtype=torch.bfloat16)
    ffn = lamella.torch.ParallelFFN(K, WIDTH, group=group, dtype=torch.bfloat16)
    ffn.w1.requires_grad_(False)
    lamella.torch.accumulate_grads(ffn)
    weigh(ffn(x).float()).backward()
    once = ffn.w2.main_grad.clone()
    assert once.any() and not hasattr(ffn.w1, "main_grad") and ffn.w1.grad is None
    again = torch.utils.checkpoint.checkpoint(ffn, x, use_reentrant=False)
    weigh(again.float()).backward()
    torch.testing.assert_close(ffn.w2.main_grad, 2 * once)
    try:
        torch.compile(ffn, fullgraph=True)(x)
    except Exception as error:
        assert "accumulate_grads" in str(error), error
    else:
        raise AssertionError("compiled, main_grad would be left alone")


@case
def a_models_ends(group):
    """Embedding and cross entropy, the vocabulary split, the weight tied."""
    vocab = 3 * group.size + 1
    ids, targets = torch.randint(vocab, (T,)), torch.randint(vocab, (T,))
    targets[2] = -100
    unsplit = torch.nn.Embedding(vocab, K)
    split = lamella.torch.VocabParallelEmbedding(vocab, K, group=group)
    split.load_state_dict(unsplit.state_dict())
    assert torch.equal(lamella.torch.whole_state_dict(split)["weight"], unsplit.weight)
    unsplit.double()
    h = unsplit(ids)
    loss = F.cross_entropy(F.linear(h, unsplit.weight), targets, reduction="none")
    weigh(loss).backward()
    my_h = split(ids)
    logits = ops.linear_col(my_h, split.weight, group=group.handle)[0]
    mine_too = lamella.torch.vocab_parallel_cross_entropy(logits, targets, vocab, group)
    weigh(mine_too).backward()
    check((my_h, h), (mine_too, loss), (split.weight.grad, mine(unsplit.weight.grad, 0, group)))


@case
def parallel_ffn_compiled(group):
    (x,) = as_f32(torch.randn(T, K))
    split = lamella.torch.ParallelFFN(K, WIDTH, group=group)
    y = split(x)
    assert torch.equal(torch.compile(split, fullgraph=True)(x), y)


@case
def a_state_that_does_not_fit_is_refused(group):
    split = lamella.torch.RowParallelLinear(K, N, group=group)
    for columns in (K - 1 - group.size, K + 1):
        try:
            split.load_state_dict(torch.nn.Linear(columns, N).state_dict())
        except RuntimeError as error:
            assert "size mismatch for weight" in str(error), error
        else:
            raise AssertionError("a weight with %d columns was taken" % columns)


# -- order: rank 0 compiles, the others do not --


def busy(group, x, w):
    """Results unused, equal calls, calls that could trade places, both ways."""
    g = group.handle
    ops.all_reduce(x, group=g)
    a = ops.all_reduce(x, group=g)
    b = ops.all_reduce(x, group=g)
    ops.all_gather(w, group=g, dim=0)
    c = ops.reduce_from_group(x * 2, group=g)
    d = ops.linear_row(x, w, group=g)
    ops.broadcast(x, group=g)
    e = ops.linear_col(x, w, group=g, act="gelu")[0]
    return weigh(d + e) + weigh(a + c) + weigh(b)


@case
def order(group):
    x, w = as_f32(*whole((T, K), (N, K)))
    busy_here = lambda x, w: busy(group, x, w)  # noqa: E731
    if group.rank == 0:
        busy_here = torch.compile(busy_here, fullgraph=True)
    found = []
    for _ in range(2):
        loss = busy_here(x, w)
        loss.backward()
        found += [loss.detach(), x.grad.clone(), w.grad.clone()]
        x.grad = w.grad = None
    for a, b in zip(found[:3], found[3:]):
        assert torch.equal(a, b)
    root = [ops.broadcast(t.reshape(1, -1), group=group.handle).reshape(t.shape) for t in found[:3]]
    check(*[(a, b.double()) for a, b in zip(found[:3], root)])


@case
def order_without_tokens(group):
    """The same with the tokens taken away: the ranks then disagree."""
    for name in ("all_reduce", "all_gather", "reduce_from_group", "linear_row", "broadcast"):
        torch._library.simple_registry.singleton.find("lamella::" + name).effect._effect = None
    order(group)


@case
def order_without_inductors_part(group):
    """The same with tokens, but not what `enforce` tells Inductor."""
    lamella.torch.register.order.enforce = lambda: None
    order(group)


def main():
    group = lamella.torch.group(deadline_ms=20000, first_deadline_ms=120000)
    failed = 0
    for name in sys.argv[1:]:
        torch.manual_seed(int(os.environ["LAMELLA_TEST_SEED"]))
        try:
            CASES[name](group)
            print("ok", name, flush=True)
        except Exception:
            failed = 1
            print("FAIL %s\n%s" % (name, traceback.format_exc()), flush=True)
            break
    os._exit(failed)


if __name__ == "__main__":
    main()
