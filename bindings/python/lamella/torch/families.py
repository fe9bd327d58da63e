"""Which modules of a decoder are split, and how: one row for each family, as data.

A `Block` says it for one layer, by the class of the layer; a `Family` for the whole model, by the
class of the model. A model that is not listed is described the same way, in `Plan(family=...)` or
by `register_family`.
Invariant: every module with parameters is named, so that none is left whole, or split wrongly, by
accident: what a row does not name is refused by parallelize.
Leaves replacing modules to splitting.py, stages to cutting.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lamella import errors


@dataclass(frozen=True)
class FFN:
    """A feed-forward block: its layers (gate, up, down, or up, down) and its activation module."""

    names: tuple
    act: str


@dataclass(frozen=True)
class Block:
    """One layer; paths start at the layer.

    column   linear layers whose outputs are split -> what they give: "q" query heads, "kv" key or
             value heads, "width" features of the FFN; several, in a fused layer's order
    row      linear layers whose inputs are split -> "q" or "width"
    ffn      feed-forward blocks that become one operator
    heads    torch.nn.MultiheadAttention, whole
    scaled   attributes, such as a count of heads, of which each rank has its share -> "q" or "kv":
             of which heads; "group": query heads on each key head. Just their paths will do, where
             ranks are not more than key heads
    inside   dropouts on what is split: ranks draw different masks there, and equal ones elsewhere
    whole    modules that every rank holds and runs whole
    """

    column: dict = field(default_factory=dict)
    row: dict = field(default_factory=dict)
    ffn: dict = field(default_factory=dict)
    heads: tuple = ()
    scaled: dict | tuple = ()
    inside: tuple = ()
    whole: tuple = ()


@dataclass(frozen=True)
class Family:
    """One kind of model; paths start at the model.

    layers     the torch.nn.ModuleList of layers
    embedding  the vocabulary's torch.nn.Embedding;  head  the linear layer that gives logits
    heads, kv_heads  where the counts stand; kv_heads None = as many as heads
    first      what only the first stage runs, beside the embedding -> "zero" or "same": what it
               gives on other stages, where hidden states come in the embedding's place
    last       what only the last stage runs, before the head
    whole      other modules with parameters, whole on every stage
    call       arguments of every call of a stage
    block      the layers', where their class is not in BLOCKS
    rebuild    buffer's name -> function(module) that makes it, where a checkpoint has none
    keep       function(a stage's first layer) -> arguments of its calls for one text, by which it
               keeps keys and values; None: generate runs the whole text for every token
    """

    layers: str
    embedding: str
    head: str
    heads: str = None
    kv_heads: str = None
    first: dict = field(default_factory=dict)
    last: tuple = ()
    whole: tuple = ()
    call: dict = field(default_factory=dict)
    block: Block = None
    rebuild: dict = field(default_factory=dict)
    keep: Callable[[int], dict] | None = None


def _llama_like():
    return Block(
        column={"self_attn.q_proj": "q", "self_attn.k_proj": "kv", "self_attn.v_proj": "kv"},
        row={"self_attn.o_proj": "q"},
        ffn={"mlp": FFN(("gate_proj", "up_proj", "down_proj"), "act_fn")},
        scaled={"self_attn.num_key_value_groups": "group"},
        whole=("input_layernorm", "post_attention_layernorm"),
    )


def _llama_model():
    return Family(
        layers="model.layers",
        embedding="model.embed_tokens",
        head="lm_head",
        heads="config.num_attention_heads",
        kv_heads="config.num_key_value_heads",
        last=("model.norm",),
        call={"use_cache": False},
        rebuild={"inv_freq": _rotary_frequencies},
        keep=_cache,
    )


def _cache(first):
    """Hugging Face's, in which a stage's first layer is the first: it tells the text's length."""
    from transformers import DynamicCache

    cache = DynamicCache()
    update = cache.update
    cache.update = lambda k, v, layer, *more: update(k, v, layer - first, *more)
    return dict(past_key_values=cache, use_cache=True)


def _rotary_frequencies(module):
    module.original_inv_freq = module.rope_init_fn(module.config, "cpu")[0]
    return module.original_inv_freq


def _causal_mask(module):
    n = module.config.max_position_embeddings
    return torch.ones(n, n, dtype=torch.bool).tril().view(1, 1, n, n)


def _masked_bias(module):
    return torch.tensor(-1e4)


# By the class of the layer
BLOCKS = {
    "LlamaDecoderLayer": _llama_like(),
    "MistralDecoderLayer": _llama_like(),
    "Qwen2DecoderLayer": _llama_like(),
    "GPT2Block": Block(
        column={"attn.c_attn": "q kv kv", "mlp.c_fc": "width"},
        row={"attn.c_proj": "q", "mlp.c_proj": "width"},
        scaled={"attn.num_heads": "q", "attn.split_size": "q"},
        inside=("attn.attn_dropout",),
        whole=("ln_1", "ln_2"),
    ),
    "TransformerEncoderLayer": Block(
        column={"linear1": "width"},
        row={"linear2": "width"},
        heads=("self_attn",),
        inside=("dropout",),
        whole=("norm1", "norm2"),
    ),
    "TransformerDecoderLayer": Block(
        column={"linear1": "width"},
        row={"linear2": "width"},
        heads=("self_attn", "multihead_attn"),
        inside=("dropout",),
        whole=("norm1", "norm2", "norm3"),
    ),
}

# By the class of the model
FAMILIES = {
    "LlamaForCausalLM": _llama_model(),
    "MistralForCausalLM": _llama_model(),
    "Qwen2ForCausalLM": _llama_model(),
    "GPT2LMHeadModel": Family(
        layers="transformer.h",
        embedding="transformer.wte",
        head="lm_head",
        heads="config.num_attention_heads",
        first={"transformer.wpe": "zero", "transformer.drop": "same"},
        last=("transformer.ln_f",),
        call={"use_cache": False},
        rebuild={"bias": _causal_mask, "masked_bias": _masked_bias},
        keep=_cache,
    ),
}


def register_family(name: str, row: Family | Block) -> None:
    """Adds a Family, by the name of a model's class, or a Block, by that of a layer's."""
    (BLOCKS if isinstance(row, Block) else FAMILIES)[name] = row


def family_of(model):
    """The row of a model, by its class or one that it is derived from."""
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise errors.Unimplemented(
        "parallelize: %s is of no known family (%s): describe it by Plan(family=Family(...)), or "
        "once by lamella.torch.register_family(%r, Family(...))"
        % (type(model).__name__, ", ".join(sorted(FAMILIES)), type(model).__name__)
    )


def block_of(layer):
    """The row of a layer, or None."""
    found = (BLOCKS.get(kind.__name__) for kind in type(layer).__mro__)
    return next(filter(None, found), None)
