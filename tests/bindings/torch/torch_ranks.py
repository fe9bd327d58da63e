"""One rank of a group: runs the cases named on the command line, and says `ok CASE` for each.

    ./lamella run -n 3 python torch_ranks.py CASE ...

Every rank makes the same whole problem from LAMELLA_TEST_SEED, solves it alone in f64 with plain
torch, takes its own part, and compares what the group gives for that part, gradients included.
Leaves modules to rank_modules.py.
"""

import os
import sys
import traceback
import warnings

import rank_modules  # noqa: F401
import torch
from rank_cases import (
    CASES,
    WIDTH,
    F,
    K,
    N,
    T,
    as_f32,
    case,
    check,
    leaves,
    library,
    mine,
    ops,
    own_loss,
    weigh,
    whole,
)
from torch._dynamo.testing import CompileCounterWithBackend

import lamella.torch


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


@case
def sequence_parallel_layers_of_lengths_that_were_marked_dynamic(group):
    """Compiled once, as each rank's share of the tokens is a symbol too; but torch tells a share of
    one row, which it takes as laid out in any way, from all others. What eager gives."""

    def layers(x, w1, w2, b2):
        tokens = x.shape[0]
        part = ops.scatter_sequence(x, group=group.handle)
        h = ops.linear_col(part, w1, act="silu", group=group.handle, seq=tokens)[0]
        return ops.linear_row(h, w2, b2, group=group.handle, seq=tokens)

    counter = CompileCounterWithBackend("aot_eager")
    compiled, kinds = torch.compile(layers, fullgraph=True, backend=counter), set()
    for tokens in (4, 9, 17):
        x, w1, w2, b2 = whole((tokens, K), (WIDTH, K), (N, WIDTH), (N,))
        y = F.linear(F.silu(F.linear(x, w1)), w2, b2)
        weigh(y).backward()
        found = []
        for call in (compiled, layers):
            given = as_f32(x, mine(w1, 0, group), mine(w2, 1, group), b2)
            torch._dynamo.mark_dynamic(given[0], 0)
            my = call(*given)
            own_loss(my, y, 0, group).backward()
            found.append([my, *[t.grad for t in given]])
        assert all(map(torch.equal, *found))
        weights = mine(w1.grad, 0, group), mine(w2.grad, 1, group), b2.grad
        check(*zip(found[0], (mine(y, 0, group), x.grad, *weights)))
        kinds.add(len(my) == 1)
    assert counter.frame_count == len(kinds)


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
def all_reduce_add_rmsnorm(group):
    """Both results count; every rank has its own copies of res and g."""
    xs, shared = everyones(group, lambda r: (T, K)), whole((T, K), (K,))
    copies = [leaves(*shared) for _ in xs]

    def both(following, g):
        return torch.cat([F.rms_norm(following, g.shape, g, 1e-5), following])

    res, g = as_f32(*shared)
    compare(
        group,
        xs,
        [both(sum(xs) + own_res, own_g) for own_res, own_g in copies],
        lambda x: torch.cat(ops.all_reduce_add_rmsnorm(x, res, g, group=group.handle, eps=1e-5)),
    )
    check(*zip((res.grad, g.grad), [t.grad for t in copies[group.rank]]))


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


def through_ranks(group, x, w, token, micro, loss=weigh):
    """rank 0: x w, sent on; others: what came, times w, sent on; the last one's loss. Tokens give
    autograd its edges. Other ranks' x is looked at for its shape."""
    h = x
    if group.rank > 0:
        h, token = ops.recv_activation(
            token, group=group.handle, peer=group.rank - 1, tag=micro, shape=x.shape
        )
    h = F.linear(h, w)
    if group.rank + 1 < group.size:
        token = ops.send_activation(h, token, group=group.handle, peer=group.rank + 1, tag=micro)
        return token.sum()
    return loss(h) + 0 * token.sum()


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
def transfer_of_a_length_that_was_marked_dynamic(group):
    def loss(h):
        return h.square().sum()  # weigh's weights are of one length

    def stage(x, w, token):
        return through_ranks(group, x, w, token, 0, loss)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(stage, fullgraph=True, backend=counter)
    for tokens in (4, 9, 17):
        x, *ws = whole((tokens, K), *[(K, K)] * group.size)
        h = x / K
        for w in ws:
            h = F.linear(h, w / K)
        loss(h).backward()
        mx, mw = as_f32(x / K, ws[group.rank] / K)
        torch._dynamo.mark_dynamic(mx, 0)
        compiled(mx, mw, torch.zeros(1, requires_grad=True)).backward()
        check((mw.grad, ws[group.rank].grad * K))
    assert counter.frame_count == 1


@case
def transfer_gradcheck(group):
    """Rank 0 sends x to rank 1, which sends back what it gets, doubled: results and, as rank 0
    receives as the other kind, gradients too."""
    end, there = torch.full((3, 4), 7.0), dict(group=group.handle, peer=1 - group.rank)

    def there_and_back(x):
        token = ops.send_activation(x, torch.zeros(1), **there)
        return ops.recv_activation(token, **there, kind=1, shape=x.shape)[0]

    if group.rank == 0:
        (x,) = as_f32(*whole((3, 4)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradcheck would rather have double
            torch.autograd.gradcheck(
                there_and_back, x, eps=2e-2, atol=2e-2, rtol=2e-2, check_undefined_grad=False
            )
        ops.send_activation(end, torch.zeros(1), **there)
    while group.rank == 1:
        found = ops.recv_activation(torch.zeros(1), **there, shape=[3, 4])[0]
        if torch.equal(found, end):
            break
        ops.send_activation(2 * found, torch.zeros(1), **there, kind=1)


@case
def into_given_tensors(group):
    """The overload `out`, twice, so that a call also writes over what the last one wrote."""
    there = dict(group=group.handle)
    total, gathered, got = torch.empty(T, K), torch.empty(T, K), torch.empty(T, K)
    token = torch.zeros(1)
    for _ in range(2):
        (x,) = whole((T, K))
        part = mine(x, 0, group).float()
        with torch.no_grad():
            ops.all_reduce.out(x.float(), **there, y=total)
            ops.all_gather.out(part, total=T, **there, y=gathered)
            check((total, x * group.size), (gathered, x))
            ops.all_reduce.out(total, **there, y=total)
            check((total, x * group.size**2))
            if group.size == 1:
                continue
            after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
            ops.send_activation.out(x.float(), token, peer=after, **there, out_token=token)
            ops.recv_activation.out(token, peer=before, shape=[T, K], **there, y=got, out_token=token)
            check((got, x))


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
    late = 20000 if "order_without" in sys.argv[1] else 120000  # elsewhere a peer is only compiling
    group = lamella.torch.group(deadline_ms=late, first_deadline_ms=120000)
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
