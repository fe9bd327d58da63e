"""Decoders of torch.nn layers alone, split by the rows that describe them."""

import dataclasses
from itertools import product

import pytest
import torch
from torch.nn import functional as F

import lamella
import lamella.torch
from lamella.torch import families
from lamella.torch.attention import ParallelAttention
from model_ranks import VOCAB, close, close_gradients, gradients, run_ranks, seed, split
from plain_model import ENCODER, FAMILY, FUSED, Decoder, Encoder, FusedLayer

MODELS = {
    "decoder": (lambda: Decoder(VOCAB, 40, 10, 5, 33, 3), FAMILY),
    "untied": (lambda: Decoder(VOCAB, 40, 10, 5, 33, 3, tied=False), FAMILY),
    "two_keys": (lambda: Decoder(VOCAB, 40, 10, 2, 33, 3), FAMILY),
    "fused": (lambda: Decoder(VOCAB, 40, 10, 2, 33, 3, kind=FusedLayer), FUSED),
    "encoder": (lambda: Encoder(VOCAB, 40, 5, 33, 3, norm_first=True), ENCODER),
    "encoder_gelu": (lambda: Encoder(VOCAB, 40, 4, 33, 3, activation="gelu"), ENCODER),
}


def unsplit(name):
    seed()
    model = MODELS[name][0]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def mean_loss(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_the_unsplit_models(name, tp):
    model, ids = unsplit(name), torch.randint(VOCAB, (2, 9))
    logits = model(ids)
    mean_loss(logits, ids).backward()

    def rank(group):
        mine = split(model, group, family=MODELS[name][1])
        mine.zero_grad()
        found = mine(ids)
        mean_loss(found, ids).backward()
        return found.detach(), gradients(mine), lamella.torch.whole_state_dict(mine)

    for found, grads, state in run_ranks(tp, rank):
        close(found, logits.detach())
        assert grads.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
        close_gradients(grads, model)
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], t) for key, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["decoder", "encoder"])
@pytest.mark.parametrize("tp, pp", [(1, 3), (2, 2)])
def test_stages_step_and_answer_as_the_unsplit_model(name, tp, pp):
    model, ids = unsplit(name), torch.randint(VOCAB, (4, 9))
    logits = model(ids)
    loss = mean_loss(logits, ids)
    loss.backward()
    words = ids
    for _ in range(2):
        words = torch.cat([words, model(words)[:, -1:].argmax(-1)], 1)

    def rank(group):
        mine = split(model, group, tp=tp, pp=pp, micro_batches=2, family=MODELS[name][1])
        mine.zero_grad()
        with torch.no_grad():
            found = mine(ids)
        step, grads = mine.step(ids, ids), {}
        for root in mine.roots.values():
            grads.update(gradients(root))
        return found, step, grads, mine.generate(ids, 2)

    for found, step, grads, text in run_ranks(tp * pp, rank):
        assert torch.equal(text, words)
        assert abs(step - loss.item()) < 1e-5
        if found is not None:
            close(found, logits.detach())
        close_gradients(grads, model)


def test_padding_is_not_looked_at():
    model, ids = unsplit("encoder"), torch.randint(VOCAB, (2, 9))
    padding = torch.arange(9) > torch.tensor([[5], [8]])
    expected = model(ids, padding)
    found = run_ranks(2, lambda group: split(model, group, family=ENCODER)(ids, padding))
    for logits in found:
        close(logits[~padding].detach(), expected[~padding].detach())


def test_a_family_is_registered_by_the_name_of_its_class(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))

    class Described(Decoder):
        pass

    class Unknown(torch.nn.Module):
        pass

    seed()
    model, ids = Described(VOCAB, 40, 4, 2, 32, 2).eval(), torch.randint(VOCAB, (2, 5))
    lamella.torch.register_family("Described", FAMILY)
    for logits in run_ranks(2, lambda group: split(model, group)(ids)):
        close(logits.detach(), model(ids).detach())
    with pytest.raises(lamella.Error, match="Unknown is of no known family .*Described"):
        lamella.torch.parallelize(Unknown(), lamella.torch.Plan())


def test_a_layer_of_no_known_class_is_named():
    row = dataclasses.replace(FAMILY, block=None)

    def rank(group):
        with pytest.raises(lamella.Error, match=r"blocks.\* \(Layer, 3 layers\): no row says"):
            split(unsplit("decoder"), group, family=row)

    run_ranks(2, rank)


@pytest.mark.parametrize("path", ["layers", "embedding", "heads"])
def test_a_path_that_leads_nowhere_is_named(path):
    row = dataclasses.replace(FAMILY, **{path: "no.such"})

    def rank(group):
        with pytest.raises(lamella.Error, match="family's row looks for .* at no.such: "):
            split(unsplit("decoder"), group, family=row)

    run_ranks(2, rank)


# -- torch.nn.MultiheadAttention --

CALLS = {
    "self": dict(need_weights=False),
    "weights": dict(),
    "causal": dict(attn_mask="causal", is_causal=True, need_weights=False),
    "causal_weights": dict(attn_mask="causal", is_causal=True),
    "per_head": dict(attn_mask="per head", need_weights=False),
    "padded": dict(key_padding_mask="padding", attn_mask="causal", need_weights=False),
    "padded_weights": dict(key_padding_mask="padding"),
}
UNBATCHED = [(call, "unbatched") for call in ("self", "weights", "causal", "causal_weights")]


def masks(heads, batch, n, s):
    return {
        "causal": torch.ones(n, s, dtype=torch.bool).triu(1),
        "per head": torch.randn(batch * heads, n, s),
        "padding": torch.arange(s) > torch.arange(batch)[:, None] + 1,
    }


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("call, kind", [*product(CALLS, ("self", "cross")), *UNBATCHED])
def test_attention_is_called_as_torchs_own(call, kind, batch_first):
    seed()
    heads, n, s = 5, 6, 4 if kind == "cross" else 6
    unsplit = torch.nn.MultiheadAttention(20, heads, bias=kind != "cross", batch_first=batch_first)
    torch.nn.init.normal_(unsplit.out_proj.weight)
    x, memory = torch.randn(3, n, 20), torch.randn(3, s, 20)
    if kind == "unbatched":
        x = x[0]
    elif not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    x.requires_grad_()
    given = (x, memory, memory * 2) if kind == "cross" else (x, x, x)
    made = masks(heads, 3, n, s)
    more = {k: made.get(v, v) if isinstance(v, str) else v for k, v in CALLS[call].items()}
    y, weights = unsplit(*given, **more)
    (gradient,) = torch.autograd.grad((y * y).sum(), x)

    def rank(group):
        options = dict(bias=kind != "cross", batch_first=batch_first, group=group)
        mine = ParallelAttention(20, heads, **options)
        mine.load_state_dict(unsplit.state_dict())
        mx = x.detach().requires_grad_()
        found, found_weights = mine(*[mx if t is x else t for t in given], **more)
        return found, found_weights, torch.autograd.grad((found * found).sum(), mx)[0]

    for found, found_weights, found_gradient in run_ranks(2, rank):
        close(found.detach(), y.detach())
        close(found_gradient, gradient)
        assert (found_weights is None) == (weights is None)
        if weights is not None:
            close(found_weights.detach(), weights.detach())


def test_attention_is_packed():
    seed()
    unsplit, x = torch.nn.MultiheadAttention(20, 5, batch_first=True), torch.randn(9, 6, 20)
    expected = unsplit(x, x, x)[0].detach()

    def rank(group):
        mine = ParallelAttention(20, 5, batch_first=True, group=group)
        mine.load_state_dict(unsplit.state_dict())
        lamella.torch.pack(mine)
        with torch.no_grad():
            assert mine.operand("out_weight", x).dtype == torch.uint8
            close(mine(x, x, x)[0], expected)
            close(mine(x, x.clone(), x)[0], expected)

    run_ranks(2, rank)


def test_gradients_of_cross_attention_are_added_up():
    seed()
    unsplit = torch.nn.MultiheadAttention(20, 5, batch_first=True)
    x, memory = torch.randn(2, 6, 20), torch.randn(2, 4, 20)

    def rank(group):
        mine = ParallelAttention(20, 5, batch_first=True, group=group)
        mine.load_state_dict(unsplit.state_dict())
        (mine(x, memory, memory)[0] ** 2).sum().backward()
        expected = {name: p.grad for name, p in mine.named_parameters()}
        mine.zero_grad()
        lamella.torch.accumulate_grads(mine)
        (mine(x, memory, memory)[0] ** 2).sum().backward()
        for name, parameter in mine.named_parameters():
            assert parameter.grad is None, name
            close(parameter.main_grad, expected[name])

    run_ranks(2, rank)


def test_what_attention_does_not_keep_is_refused():
    class Odd(Encoder):
        def __init__(self):
            super().__init__(VOCAB, 40, 5, 33, 2)
            self.encoder.layers[1].self_attn = torch.nn.MultiheadAttention(40, 5, add_bias_kv=True)

    def rank(group):
        with pytest.raises(lamella.Error, match=r"self_attn \(MultiheadAttention\): kdim, vdim"):
            split(Odd(), group, family=ENCODER)

    run_ranks(2, rank)
