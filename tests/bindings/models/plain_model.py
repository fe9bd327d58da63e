"""A decoder of torch.nn layers alone, as a user writes one, and the row that describes it."""

import dataclasses

import torch
from torch.nn import functional as F

from lamella.torch import Block, Family


class Layer(torch.nn.Module):
    """Attention with key heads shared by several query heads, then a feed-forward block."""

    def __init__(self, width, heads, kv_heads, ffn):
        super().__init__()
        self.heads, self.kv_heads, size = heads, kv_heads, width // heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.q = torch.nn.Linear(width, heads * size)
        self.kv = torch.nn.Linear(width, 2 * kv_heads * size)
        self.out = torch.nn.Linear(heads * size, width)
        self.up, self.down = torch.nn.Linear(width, ffn), torch.nn.Linear(ffn, width)
        self.drop = torch.nn.Dropout(0.1)

    def forward(self, x):
        x = x + self.drop(self.out(self.attend(self.norm1(x))))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def project(self, x):
        return self.q(x), self.kv(x)

    def attend(self, x):
        batch, n, _ = x.shape
        q, kv = self.project(x)
        q = q.view(batch, n, self.heads, -1).transpose(1, 2)
        k, v = kv.view(batch, n, 2, self.kv_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).reshape(batch, n, -1)


class FusedLayer(Layer):
    """The same with one projection for queries, keys and values."""

    def __init__(self, width, heads, kv_heads, ffn):
        super().__init__(width, heads, kv_heads, ffn)
        del self.q, self.kv
        self.qkv = torch.nn.Linear(width, (heads + 2 * kv_heads) * (width // heads))

    def project(self, x):
        qkv = self.qkv(x)
        size = qkv.shape[-1] // (self.heads + 2 * self.kv_heads)
        return qkv.split([self.heads * size, 2 * self.kv_heads * size], -1)


class Decoder(torch.nn.Module):
    def __init__(
        self, vocab, width, heads, kv_heads, ffn, layers, length=64, tied=True, kind=Layer
    ):
        super().__init__()
        self.words = torch.nn.Embedding(vocab, width)
        self.places = torch.nn.Embedding(length, width)
        made = [kind(width, heads, kv_heads, ffn) for _ in range(layers)]
        self.blocks = torch.nn.ModuleList(made)
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


FAMILY = Family(
    layers="blocks",
    embedding="words",
    head="head",
    heads="blocks.0.heads",
    kv_heads="blocks.0.kv_heads",
    first={"places": "zero"},
    last=("norm",),
    block=Block(
        column={"q": "q", "kv": "kv kv", "up": "width"},
        row={"out": "q", "down": "width"},
        scaled={"heads": "q", "kv_heads": "kv"},
        whole=("norm1", "norm2"),
    ),
)


FUSED = dataclasses.replace(
    FAMILY,
    block=dataclasses.replace(FAMILY.block, column={"qkv": "q kv kv", "up": "width"}),
)


class Encoder(torch.nn.Module):
    """A decoder of torch's own layers: an encoder under a causal mask."""

    def __init__(self, vocab, width, heads, ffn, layers, length=64, **more):
        super().__init__()
        self.words = torch.nn.Embedding(vocab, width)
        self.places = torch.nn.Embedding(length, width)
        layer = torch.nn.TransformerEncoderLayer(width, heads, ffn, batch_first=True, **more)
        self.encoder = torch.nn.TransformerEncoder(layer, layers, torch.nn.LayerNorm(width))
        self.head = torch.nn.Linear(width, vocab)

    def forward(self, ids, padding=None):
        n = ids.shape[1]
        x = self.words(ids) + self.places(torch.arange(n))
        mask = torch.nn.Transformer.generate_square_subsequent_mask(n)
        return self.head(self.encoder(x, mask, padding, is_causal=True))


ENCODER = Family(
    layers="encoder.layers",
    embedding="words",
    head="head",
    first={"places": "zero"},
    last=("encoder.norm",),
)
