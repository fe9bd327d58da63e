"""Whole decoders split over tensor ranks give what the unsplit ones give."""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.utils.checkpoint

import lamella
import lamella.torch
from lamella.torch.modules import Split
from model_ranks import CONFIGS, VOCAB, close, close_gradients, gradients, gpt2, run_ranks, split
from model_ranks import unsplit
from plain_model import FAMILY, Decoder


def key_heads(name):
    config = CONFIGS[name]()
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


def batch(model):
    """Ids, the padding id among them, and labels of which some do not count."""
    ids = torch.randint(3, VOCAB, (2, 13))
    ids[0, 4] = ids[1, 0] = 2
    labels = ids.clone()
    labels[0, :3] = -100
    return ids, labels


def step(model, ids, labels):
    result = model(ids, labels=labels)
    result.loss.backward()
    return result.logits.detach(), result.loss.detach()


FEWER_KEYS = [("llama", 4), ("llama_biases", 4), ("qwen2", 4), ("llama_two_keys", 4)]
FEWER_KEYS += [("llama_two_keys", 3), ("mistral", 5)]


@pytest.mark.parametrize(
    "name, tp",
    [(name, p) for name in CONFIGS for p in (1, 2, 3, 4) if p <= key_heads(name)] + FEWER_KEYS,
)
def test_logits_loss_and_gradients_are_the_unsplit_models(name, tp):
    model = unsplit(name)
    ids, labels = batch(model)
    logits, loss = step(model, ids, labels)

    def rank(group):
        mine = split(model, group)
        mine.zero_grad()
        return *step(mine, ids, labels), gradients(mine)

    for found_logits, found_loss, grads in run_ranks(tp, rank):
        close(found_logits, logits)
        close(found_loss, loss)
        assert grads.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
        close_gradients(grads, model)


@pytest.mark.parametrize(
    "name, tp", [("llama", 2), ("llama", 3), ("llama", 4), ("gpt2", 2), ("gpt2", 3)]
)
def test_each_rank_holds_whole_heads_and_its_share_of_the_rest(name, tp):
    model = unsplit(name)

    def rank(group):
        mine = split(model, group)
        if name == "llama":
            attention, ffn = mine.model.layers[1].self_attn, mine.model.layers[1].mlp
            heads = [len(p.weight) // 4 for p in (attention.q_proj, attention.k_proj)]
            return heads, ffn.w2.shape[1], len(mine.lm_head.weight)
        attention = mine.transformer.h[1].attn
        heads = [attention.num_heads, attention.c_attn.weight.shape[1] // 24]
        return heads, mine.transformer.h[1].mlp.c_fc.weight.shape[1], len(mine.lm_head.weight)

    expected = {
        ("llama", 2): [([6, 2], 25, 49), ([3, 1], 25, 48)],
        ("llama", 3): [([3, 1], 17, 33), ([3, 1], 17, 32), ([3, 1], 16, 32)],
        ("llama", 4): [([2, 1], 13, 25), ([1, 1], 13, 24), ([3, 1], 12, 24), ([3, 1], 12, 24)],
        ("gpt2", 2): [([3, 3], 80, 49), ([2, 2], 80, 48)],
        ("gpt2", 3): [([2, 2], 54, 33), ([2, 2], 53, 32), ([1, 1], 53, 32)],
    }
    assert run_ranks(tp, rank) == expected[name, tp]


@pytest.mark.parametrize("name", ["llama_biases", "llama_two_keys"])
def test_gradients_of_shared_key_heads_are_added_up_as_others(name):
    model = unsplit(name)
    ids, labels = batch(model)
    step(model, ids, labels)

    def rank(group):
        mine = split(model, group)
        mine.zero_grad()
        lamella.torch.accumulate_grads(mine)
        for _ in range(2):
            step(mine, ids, labels)
        for parameter in mine.parameters():
            if hasattr(parameter, "main_grad"):
                assert parameter.grad is None
                parameter.grad = parameter.main_grad
        return gradients(mine)

    for grads in run_ranks(4, rank):
        close_gradients(grads, model, times=2)


@pytest.mark.parametrize(
    "name, tp", [("llama", 3), ("llama_biases", 3), ("gpt2", 3), ("llama_two_keys", 4)]
)
def test_states_load_from_and_save_to_the_unsplit_model(name, tp):
    model, other = unsplit(name), unsplit(name)
    state = {key: t.clone() for key, t in other.state_dict().items()}

    def rank(group):
        mine = split(model, group)
        before = copy.deepcopy(lamella.torch.whole_state_dict(mine))
        mine.load_state_dict(dict(state))
        return before, lamella.torch.whole_state_dict(mine)

    for before, after in run_ranks(tp, rank):
        for found, whole in ((before, model.state_dict()), (after, state)):
            assert found.keys() == whole.keys()
            assert all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["llama", "gpt2_untied"])
def test_tied_weights_stay_one_parameter_and_others_two(name):
    def rank(group):
        mine = split(unsplit_model, group)
        embedding, head = mine.get_input_embeddings().weight, mine.get_output_embeddings().weight
        return embedding is head

    unsplit_model = unsplit(name)
    assert run_ranks(2, rank) == [name == "llama"] * 2


@pytest.mark.parametrize(
    "name, tp", [("llama", 2), ("gpt2", 2), ("mistral", 2), ("llama", 4), ("llama_two_keys", 4)]
)
def test_generate_with_a_cache_gives_the_unsplit_models_words(name, tp):
    model = unsplit(name)
    ids = torch.randint(3, VOCAB, (2, 5))
    options = dict(max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    options.update(eos_token_id=None, pad_token_id=0)
    words = model.generate(ids, **options)
    for found in run_ranks(tp, lambda group: split(model, group).generate(ids, **options)):
        assert torch.equal(found, words)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_without_gathering_each_rank_has_its_columns_and_the_loss_is_the_same(name):
    model = unsplit(name)
    ids, labels = batch(model)
    logits, loss = step(model, ids, labels)

    def rank(group):
        mine = split(model, group, gather_logits=False)
        mine.zero_grad()
        return *step(mine, ids, labels), gradients(mine)

    found = run_ranks(2, rank)
    close(torch.cat([part for part, _, _ in found], -1), logits)
    for part, found_loss, grads in found:
        assert part.shape[-1] < VOCAB
        close(found_loss, loss)
        close_gradients(grads, model)


@pytest.mark.parametrize("tp, pp", [(2, 1), (2, 2)])
def test_words_are_not_made_of_a_part_of_the_logits(tp, pp):
    def rank(group):
        mine = split(model, group, tp=tp, pp=pp, gather_logits=False)
        with pytest.raises(lamella.Error, match="generate needs whole logits"):
            mine.generate(torch.ones(1, 3, dtype=torch.int64), 2)

    model = unsplit("gpt2")
    run_ranks(tp * pp, rank)


def test_frozen_parameters_stay_frozen():
    model = unsplit("llama")
    model.requires_grad_(False)
    model.model.layers[1].mlp.requires_grad_(True)

    def rank(group):
        mine = split(model, group)
        return sorted(name for name, p in mine.named_parameters() if p.requires_grad)

    names = ["model.layers.1.mlp.w1", "model.layers.1.mlp.w2"]
    assert run_ranks(2, rank) == [names, names]


# -- dropout: equal masks on what every rank holds whole --


def dropped(model, group):
    """Logits in training, and whether the heads' dropout would be left to each rank."""
    mine = split(model, group).train()
    return mine(torch.arange(12).reshape(2, 6)).logits.detach(), mine.transformer.h[0].attn


def gpt2_that_drops(**more):
    rates = dict(resid_pdrop=0.4, embd_pdrop=0.2, attn_pdrop=0.0)
    CONFIGS["gpt2_drops"] = lambda: gpt2(**{**rates, **more})
    return unsplit("gpt2_drops")


def test_ranks_drop_the_same_of_what_all_of_them_hold():
    model = gpt2_that_drops()
    found = run_ranks(3, lambda group: dropped(model, group))
    for logits, attention in found:
        assert torch.equal(logits, found[0][0])
        assert type(attention.resid_dropout) is not torch.nn.Dropout
        assert type(attention.attn_dropout) is torch.nn.Dropout
    assert not torch.equal(found[0][0], model(torch.arange(12).reshape(2, 6)).logits)


def test_shared_dropout_keeps_the_mean_and_has_the_gradient_of_what_it_kept():
    drop = lamella.torch.splitting.SharedDropout(0.25, 7)
    x = torch.full((400, 50), 3.0, requires_grad=True)
    y = drop(x)
    y.sum().backward()
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert abs(y.mean().item() - 3) < 0.1  # 20,000 draws: 8 standard deviations
    assert torch.equal(x.grad, y.detach() / 3)
    assert not torch.equal(drop(x), y)
    assert drop.eval()(x) is x


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_that_a_checkpoint_runs_again_drops_the_same(reentrant):
    """The sum of the gradients is that of the outputs only where both had one mask."""
    drop = lamella.torch.splitting.SharedDropout(0.5, 7)
    xs = [torch.rand(4, 100, requires_grad=True) for _ in range(3)]
    run = torch.utils.checkpoint.checkpoint
    ys = [run(drop, x, use_reentrant=reentrant) for x in xs]
    for x, y in reversed(list(zip(xs, ys))):
        y.sum().backward()
        assert torch.equal(x.grad > 0, y > 0) and 0 < (y > 0).sum() < 400
    assert not torch.equal(ys[0] > 0, ys[1] > 0)
    y = run(drop, xs[0], use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(lamella.Error, match="preserve_rng_state=True"):
        y.sum().backward()


def test_only_lamella_saves_a_split_model_and_a_copy_of_it_works(tmp_path):
    model = unsplit("llama")
    ids = torch.arange(12).reshape(2, 6)

    def rank(group):
        mine = split(model, group)
        with pytest.raises(lamella.Error, match="lamella.torch.save"):
            mine.save_pretrained(tmp_path)
        with pytest.raises(lamella.Error, match="group cannot be pickled"):
            pickle.dumps(mine)
        again = copy.deepcopy(mine)
        assert again.lm_head.weight is not mine.lm_head.weight
        return torch.equal(again(ids).logits, mine(ids).logits)

    assert run_ranks(2, rank) == [True, True]
    assert not list(tmp_path.iterdir())


# -- what cannot be split --


class Adapted(torch.nn.Linear):
    """A linear layer that does more, as adapters make them."""


def refusal(model, tp=2, **plan):
    before = {name: p.clone() for name, p in model.state_dict().items()}

    def rank(group):
        with pytest.raises(lamella.Error) as caught:
            lamella.torch.parallelize(model, lamella.torch.Plan(tp=tp, **plan), group)
        return str(caught.value)

    texts = run_ranks(tp, rank)
    assert len(set(texts)) == 1
    assert not any(isinstance(module, Split) for module in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    return texts[0]


def test_all_that_cannot_be_split_is_named_in_one_error():
    model = unsplit("llama")
    model.model.layers[1].self_attn.q_proj = Adapted(36, 36)
    model.model.layers[2].mlp.up_proj = Adapted(36, 50)
    model.model.embed_tokens.max_norm = 1.0
    text = refusal(model)
    assert "LlamaForCausalLM cannot be split over 2 ranks" in text
    assert "model.layers.*.self_attn.q_proj (Adapted): only torch.nn.Linear" in text
    assert "model.layers.*.mlp.up_proj (Adapted): only torch.nn.Linear" in text
    assert "model.embed_tokens (Embedding): max_norm=1.0 is not kept" in text


def test_more_ranks_than_query_heads_are_refused_with_the_counts():
    text = refusal(unsplit("llama"), tp=10)
    counts = "9 query heads on 3 key heads for 10 ranks: each needs at least one"
    assert "self_attn.k_proj (Linear, 3 layers): " + counts in text
    assert "up_proj" not in text


def test_a_row_that_does_not_say_of_which_heads_it_counts_is_refused():
    block = dataclasses.replace(FAMILY.block, scaled=("heads", "kv_heads"))
    family = dataclasses.replace(FAMILY, block=block)
    text = refusal(Decoder(VOCAB, 40, 10, 2, 33, 3), tp=3, family=family)
    assert "blocks.*.heads (int, 3 layers): 3 ranks for 2 key heads: the row's `scaled`" in text


def test_what_the_row_does_not_name_is_refused():
    CONFIGS["crossed"] = lambda: gpt2(add_cross_attention=True)
    text = refusal(unsplit("crossed"))
    assert "transformer.h.*.crossattention.c_attn (Conv1D, 3 layers): the family's row" in text
    assert "transformer.h.*.ln_cross_attn (LayerNorm, 3 layers)" in text
    assert "transformer.h.*.attn" not in text


def test_numbers_that_the_operators_do_not_take_are_refused():
    text = refusal(unsplit("gpt2").double())
    assert "transformer.wte (Embedding): the operators do not take torch.float64" in text


def test_hooks_that_would_be_lost_are_refused():
    model = unsplit("gpt2")
    model.transformer.h[0].attn.c_proj.register_forward_hook(lambda *_: None)
    assert "transformer.h.*.attn.c_proj (Conv1D): it has forward hooks" in refusal(model)


def test_a_shared_weight_that_is_split_in_two_ways_is_refused():
    model = unsplit("llama_biases")
    ffn = model.model.layers[0].self_attn
    ffn.o_proj.weight = ffn.q_proj.weight  # in features here, out features there
    assert "o_proj (Linear): its weight is also model.layers.0.self_attn.q_proj" in refusal(model)


def test_an_unknown_family_is_told_how_to_describe_itself():
    text = refusal(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    assert "Sequential is of no known family (GPT2LMHeadModel, Llama" in text
    assert "register_family('Sequential'" in text


def test_a_plan_for_another_number_of_ranks_is_refused():
    def rank(group):
        with pytest.raises(lamella.Error, match="tp=3 and pp=1 for a group of 2"):
            split(unsplit("gpt2"), group, tp=3)

    run_ranks(2, rank)
