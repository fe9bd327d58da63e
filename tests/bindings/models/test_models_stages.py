"""Whole decoders cut into stages, and stages split over tensor ranks: forward, words, training."""

import copy

import pytest
import torch

import lamella
import lamella.torch
from lamella.schedule import Schedule
from lamella.torch import cutting
from lamella.torch.pipelined import Pipelined
from model_ranks import CONFIGS, VOCAB, close, close_gradients, gradients, gpt2, run_ranks, split
from model_ranks import unsplit

# tp, pp and what else the plan says
PLANS = {
    "1f1b": (1, 2, dict(micro_batches=3)),
    "gpipe": (1, 3, dict(schedule="gpipe", layers=(1, 1, 1))),
    "zb-h1": (1, 2, dict(schedule="zb-h1", layers=(1, 2))),
    "zbv": (1, 2, dict(schedule="zbv", stages_per_rank=2, layers=(1, 1, 1, 1), micro_batches=4)),
    "tensor": (2, 2, {}),
    "columns": (2, 2, dict(gather_logits=False)),
    "shared": (4, 2, dict(schedule="zb-h1", micro_batches=2)),  # key heads, by two ranks
}


def model_for(plan, name):
    """With a layer for each stage."""
    if plan == "zbv":
        config = CONFIGS[name]()
        config.num_hidden_layers = 4
        CONFIGS["four layers"] = lambda: config
        return unsplit("four layers")
    return unsplit(name)


def batch():
    ids = torch.randint(3, VOCAB, (7, 6))  # rows that no number of micro-batches divides
    ids[0, 4] = 2
    labels = ids.clone()
    labels[0, :3] = labels[5, 1:] = -100
    return ids, labels


def all_gradients(model):
    found = {}
    for root in model.roots.values():
        found.update(gradients(root))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2_untied"])
@pytest.mark.parametrize("plan", list(PLANS))
def test_a_step_gives_the_unsplit_models_loss_and_gradients(plan, name):
    model = model_for(plan, name)
    tp, pp, more = PLANS[plan]
    ids, labels = batch()
    loss = model(ids, labels=labels).loss
    loss.backward()

    def rank(group):
        mine = split(model, group, tp=tp, pp=pp, **more)
        mine.zero_grad()
        losses = [mine.step(ids, labels) for _ in range(2)]
        return losses, all_gradients(mine)

    found, together = run_ranks(tp * pp, rank), {}
    for losses, grads in found:
        close(torch.tensor(losses), loss.detach().expand(2))
        together.update(grads)
        close_gradients(grads, model, times=2)
    assert together.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("plan", ["1f1b", "gpipe", "zbv", "tensor", "shared"])
def test_logits_and_words_are_the_unsplit_models(plan, name):
    model = model_for(plan, name)
    tp, pp, more = PLANS[plan]
    ids, _ = batch()
    expected = model(ids).logits
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    words = model.generate(ids, max_new_tokens=4, attention_mask=torch.ones_like(ids), **options)

    def rank(group):
        mine = split(model, group, tp=tp, pp=pp, **more)
        with torch.no_grad():
            return mine(ids), mine.generate(ids, 4)

    found = run_ranks(tp * pp, rank)
    assert sum(logits is not None for logits, _ in found) == tp
    for logits, text in found:
        assert torch.equal(text, words)
        if logits is not None:
            close(logits, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("plan", ["gpipe", "zbv"])
def test_a_token_sends_its_own_activation_alone(plan, name, monkeypatch):
    model, ids, sent = model_for(plan, name), batch()[0], []
    send = Pipelined.send

    def note(self, stage, hidden):
        sent.append(hidden.shape[:2])
        send(self, stage, hidden)

    monkeypatch.setattr(Pipelined, "send", note)
    tp, pp, more = PLANS[plan]
    run_ranks(pp, lambda group: split(model, group, tp=tp, pp=pp, **more).generate(ids, 4))
    edges = 2  # that cross ranks: a V's turning point does not
    assert sorted(sent) == [(7, 1)] * 3 * edges + [(7, 6)] * edges


def test_an_end_of_text_ends_a_row_and_all_rows_the_text():
    model = unsplit("llama")
    ids = torch.randint(3, VOCAB, (1, 5))
    third = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, -1].item()

    def rank(group):
        return split(model, group, tp=1, pp=2).generate(ids, 9, eos_token_id=third)

    for text in run_ranks(2, rank):
        assert text[0, -1] == third and text.shape[1] <= 8


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_masks_reach_every_stage_and_are_cut_with_their_rows(name):
    model = unsplit(name)
    ids, labels = batch()
    mask = torch.ones_like(ids)
    for row in range(4):
        mask[row, :row] = 0  # padded on the left
        labels[row, : row + 1] = -100
    expected = model(ids, attention_mask=mask).logits
    loss = model(ids, attention_mask=mask, labels=labels).loss
    words = ids
    for n in range(3):
        longer = torch.cat([mask, torch.ones(len(ids), n, dtype=mask.dtype)], 1)
        best = model(words, attention_mask=longer).logits[:, -1:].argmax(-1)
        words = torch.cat([words, best], 1)

    def rank(group):
        mine = split(model, group, tp=1, pp=2, micro_batches=2)
        with torch.no_grad():
            logits = mine(ids, attention_mask=mask)
        text = mine.generate(ids, 3, attention_mask=mask)
        return logits, mine.step(ids, labels, attention_mask=mask), text

    (_, first, text), (logits, last, _) = run_ranks(2, rank)
    assert torch.equal(text, words)
    close(logits[mask > 0], expected[mask > 0])
    close(torch.tensor([first, last]), loss.detach().expand(2))


def test_the_optimizer_trains_it_as_the_unsplit_model():
    """Three steps, on batches of two lengths: what is tied stays equal on both ends."""
    model = unsplit("llama")
    batches = [batch(), tuple(t[:, :4] for t in batch()), batch()]
    state = model.state_dict()

    def train(step, parameters):
        sgd, losses = torch.optim.SGD(parameters, lr=0.05), []
        for ids, labels in batches:
            sgd.zero_grad()
            losses.append(step(ids, labels))
            sgd.step()
        return losses

    def rank(group):
        mine = split(model, group, tp=1, pp=2, micro_batches=2)
        losses = train(mine.step, mine.parameters())
        return losses, lamella.torch.whole_state_dict(mine)

    found = run_ranks(2, rank)

    def alone(ids, labels):
        loss = model(ids, labels=labels).loss
        loss.backward()
        return loss.item()

    expected = train(alone, model.parameters())
    for losses, whole in found:
        close(torch.tensor(losses), torch.tensor(expected), roundings=500)
        assert whole.keys() == state.keys()
        for name, tensor in model.state_dict().items():
            close(whole[name], tensor, roundings=500)


def test_a_loss_of_ones_own_is_averaged_over_micro_batches():
    model = unsplit("gpt2")
    ids = torch.randint(3, VOCAB, (4, 6))

    def loss(logits, labels):
        return torch.nn.functional.mse_loss(logits[..., 0], labels.float())

    expected = loss(model(ids).logits, ids)

    def rank(group):
        return split(model, group, tp=1, pp=2, loss=loss, micro_batches=2).step(ids, ids)

    for found in run_ranks(2, rank):
        close(torch.tensor(found), expected.detach())


def test_a_forward_has_no_gradients_and_a_copy_is_trained_by_itself():
    model, ids = unsplit("llama"), batch()[0]

    def rank(group):
        mine = split(model, group, tp=1, pp=2, micro_batches=2)
        logits = mine(ids)
        loss, again = mine.step(ids, ids), copy.deepcopy(mine)
        again.zero_grad()
        return logits, loss, again.step(ids, ids)

    for logits, loss, of_copy in run_ranks(2, rank):
        assert loss == of_copy
        assert logits is None or not logits.requires_grad


# -- which layers go where --


def test_layers_are_shared_out_so_that_the_slowest_stage_is_fastest():
    assert cutting.balanced([1] * 6, 3) == (2, 2, 2)
    assert cutting.balanced([1, 1, 1, 1, 1, 9], 2) == (5, 1)
    assert cutting.balanced([3, 1, 1, 1, 1, 1], 2) == (2, 4)
    costs = torch.randint(1, 50, (9,)).tolist()
    best = min(
        max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:]))
        for a in range(1, 8)
        for b in range(a + 1, 9)
    )
    a, b, c = cutting.balanced(costs, 3)
    assert a + b + c == 9
    assert max(sum(costs[:a]), sum(costs[a : a + b]), sum(costs[a + b :])) == best


def test_a_stage_holds_its_own_layers_under_their_names():
    def rank(group):
        mine = split(model, group, tp=1, pp=2, layers=(1, 2))
        [root] = mine.roots.values()
        return [name for name, _ in root.named_parameters() if "mlp" in name]

    model = unsplit("gpt2")
    first, last = run_ranks(2, rank)
    assert {name.split(".")[2] for name in first} == {"0"}
    assert {name.split(".")[2] for name in last} == {"1", "2"}


def refusal(model, **plan):
    def rank(group):
        with pytest.raises(lamella.Error) as caught:
            split(model, group, tp=1, pp=2, **plan)
        return str(caught.value)

    texts = run_ranks(2, rank)
    assert len(set(texts)) == 1
    return texts[0]


def test_layers_that_do_not_fit_the_stages_are_refused():
    model = unsplit("gpt2")
    assert "layers=[1, 1] for 2 stages of 3 layers" in refusal(model, layers=(1, 1))
    assert "layers=[3, 0] for 2 stages of 3 layers" in refusal(model, layers=(3, 0))
    CONFIGS["shallow"] = lambda: gpt2(n_layer=1)
    assert "for 2 stages of 1 layers" in refusal(unsplit("shallow"))


def test_a_module_that_no_stage_has_is_refused():
    model = unsplit("gpt2")
    model.transformer.extra = torch.nn.LayerNorm(40)
    assert "transformer.extra (LayerNorm) is in no stage" in refusal(model)


def test_a_schedule_for_other_ranks_is_refused():
    assert "3 ranks" in refusal(unsplit("gpt2"), schedule=Schedule.build("1f1b", 3, 4))
