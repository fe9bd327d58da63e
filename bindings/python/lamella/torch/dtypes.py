"""Torch's dtypes by the names and numbers that Lamella has for them."""

import torch

NAMED = {"f32": torch.float32, "u8": torch.uint8}
# code | bits << 8, as DLPack counts them: the attribute `dtype`
CODED = {
    2 | 32 << 8: torch.float32,
    4 | 16 << 8: torch.bfloat16,
    2 | 16 << 8: torch.float16,
    2 | 64 << 8: torch.float64,
    0 | 32 << 8: torch.int32,
    0 | 64 << 8: torch.int64,
    1 | 8 << 8: torch.uint8,
    10 | 8 << 8: torch.float8_e4m3fn,
    12 | 8 << 8: torch.float8_e5m2,
}
# What fp8 operands give
WIDE = {torch.float8_e4m3fn: torch.bfloat16, torch.float8_e5m2: torch.bfloat16}
CODES = {dtype: code for code, dtype in CODED.items()}


def find(dtype):
    """From a shape rule's dtype: a name, a code, or torch's own already."""
    return NAMED.get(dtype) or CODED.get(dtype) or dtype
