"""Ranks that are threads of this process, small decoders, and what a split model is compared with.

Ranks share torch's random numbers, so what they draw differs from rank to rank.
"""

import copy
import random
import threading

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

import lamella
from lamella.torch.modules import Split

VOCAB = 97  # divided evenly by nothing


def llama(**more):
    """9 query heads on 3 key heads; its padding id's embedding gets no gradient."""
    sizes = dict(hidden_size=36, intermediate_size=50, num_hidden_layers=3, head_dim=4)
    heads = dict(num_attention_heads=9, num_key_value_heads=3)
    return LlamaConfig(**{**sizes, **heads, **dict(vocab_size=VOCAB, pad_token_id=2), **more})


def gpt2(**more):
    sizes = dict(n_embd=40, n_layer=3, n_head=5, n_positions=64, vocab_size=VOCAB)
    return GPT2Config(**{**sizes, **dict(bos_token_id=1, eos_token_id=1), **more})


def like_llama(kind, **more):
    return kind(**{k: v for k, v in llama().to_dict().items() if k in SHARED}, **more)


SHARED = "hidden_size intermediate_size num_hidden_layers head_dim num_attention_heads"
SHARED = set(SHARED.split()) | {"num_key_value_heads", "vocab_size", "pad_token_id"}
FOUR = dict(num_attention_heads=10, num_key_value_heads=5)
CONFIGS = {
    "llama": lambda: llama(tie_word_embeddings=True),
    "llama_biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama_ten_heads": lambda: llama(hidden_size=40, **FOUR, hidden_act="gelu_new"),
    "llama_two_keys": lambda: llama(num_attention_heads=8, num_key_value_heads=2),
    "llama_quick_gelu": lambda: llama(hidden_act="quick_gelu"),  # the ffn operator lacks it
    "mistral": lambda: like_llama(MistralConfig, sliding_window=6),
    "qwen2": lambda: like_llama(Qwen2Config, tie_word_embeddings=True),
    "gpt2": gpt2,
    "gpt2_untied": lambda: gpt2(tie_word_embeddings=False, n_inner=33),
    "gpt2_eager": lambda: gpt2(attn_implementation="eager"),
}


def seed():
    """Fresh random numbers, which a failure's output tells."""
    found = random.randrange(2**31)
    print("seed", found)
    torch.manual_seed(found)


def unsplit(name):
    """A model with random weights, biases and norms included."""
    seed()
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def run_ranks(n, function):
    """function(group) on n threads; what each gave, in their order. A failure is raised."""
    id, found = lamella.Group.new_id(), [None] * n

    def run(rank):
        try:
            deadlines = dict(deadline_ms=20000, first_deadline_ms=60000)
            with lamella.Group.create(id, rank, n, **deadlines) as group:
                found[rank] = function(group)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [error for error in found if isinstance(error, BaseException)]
    failures.sort(key=lambda error: isinstance(error, lamella.Error))  # causes before consequences
    if failures:
        raise failures[0]
    return found


def split(model, group, **plan):
    """A copy of the model, split over the group."""
    plan = {"tp": group.size, **plan}
    return lamella.torch.parallelize(copy.deepcopy(model), lamella.torch.Plan(**plan), group)


def gradients(model):
    """The unsplit model's gradients, by name, on every rank. Collective."""
    found = {}
    for path, module in model.named_modules():
        dot = path + "." if path else ""
        own = {n: p.grad for n, p in module._parameters.items() if p is not None}
        if isinstance(module, Split):
            own = {n: module.whole(n, g) if n in module.splits else g for n, g in own.items()}
            own = module.apart(own)
        found.update((dot + name, grad) for name, grad in own.items())
    return found


def close(found, whole, roundings=64, more=1e-3):
    """Within so many roundings, in f32, of the largest element, and `more`."""
    largest = whole.abs().max().item()
    torch.testing.assert_close(found, whole, rtol=0, atol=roundings * 2.0**-24 * (largest + more))


def close_gradients(found, model, times=1):
    """Gradients by name are the unsplit model's, `times` over. Where terms cancel each other,
    what is left has errors of their size: a tenth of the model's largest gradient stands for it."""
    largest = max(p.grad.abs().max().item() for p in model.parameters())
    for name, gradient in found.items():
        close(gradient, times * model.get_parameter(name).grad, more=times * largest / 10)
