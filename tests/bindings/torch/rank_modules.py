"""Cases of torch_ranks.py: modules whose weights are split, and what is done with them."""

import os

import torch
import torch.utils.checkpoint
from rank_cases import WIDTH, F, K, N, T, as_f32, case, check, mine, ops, weigh, whole

import lamella.torch
from lamella.torch.modules import Ranges


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
def columns_that_every_rank_holds(group):
    """Their gradients are sums over the ranks; each rank's loss counts otherwise."""
    x, w, b = whole((T, K), (N, K), (N,))
    (weigh(F.linear(x, w, b)) * sum(range(1, group.size + 1))).backward()
    blocks = [(N, Ranges([(0, N)] * group.size))]
    split = lamella.torch.ColumnParallelLinear(K, N, group=group, blocks=blocks)
    split.share(group.handle)
    split.load_state_dict(dict(weight=w.detach().float(), bias=b.detach().float()))
    for call in (split, torch.compile(split, fullgraph=True, backend="aot_eager")):
        split.zero_grad()
        (mx,) = as_f32(x)
        ((group.rank + 1) * weigh(call(mx))).backward()
        check((mx.grad, x.grad), (split.weight.grad, w.grad), (split.bias.grad, b.grad))


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
