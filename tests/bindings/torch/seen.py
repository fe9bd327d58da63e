"""Calls every operator in torch under a library that keeps where the tensors of a call lay (seen.c),
and compares that with where torch has them. Ends by `copied nothing`.

    LD_PRELOAD=seen.so python seen.py SEED
"""

import ctypes
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bindings/python")]

import torch  # noqa: E402
from torch_samples import all_samples  # noqa: E402

import lamella.torch  # noqa: E402, F401
from lamella import rows  # noqa: E402

ADDRESSES = ctypes.c_void_p * 16
SEEN = ctypes.CDLL(None)
INPUTS = ADDRESSES.in_dll(SEEN, "lam_seen_inputs")
OUTPUTS = ADDRESSES.in_dll(SEEN, "lam_seen_outputs")


def as_it_is(t, is_weight):
    return t


def in_rows(t, is_weight):
    """Rows of a wider tensor."""
    if t.dim() < 2:
        return t
    wide = t.new_zeros(*t.shape[:-1], t.shape[-1] + 3)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def in_columns(t, is_weight):
    return t.t().contiguous().t() if is_weight and t.dim() == 2 else t


def expanded_once(t, is_weight):
    """One batch more, by an expanded dimension, whose stride is 0."""
    return t if is_weight or t.dim() != 2 else t.expand(1, *t.shape)


def repeated(t, is_weight):
    """Rows that are one row, which the library does not read."""
    return t[:1].expand_as(t) if t.dim() > 1 else t


def check(name, arguments, keywords, layout):
    row = rows.table()[name]
    values = row.bind(arguments, keywords)
    for tensor in row.inputs:
        if values[tensor.name] is not None:
            values[tensor.name] = layout(values[tensor.name], tensor.name.startswith("w"))
    results = getattr(torch.ops.lamella, name)(*[values[n] for n in row.arguments])
    results = results if isinstance(results, tuple) else (results,)
    for i, tensor in enumerate(row.inputs):
        t = values[tensor.name]
        if t is not None:
            is_read = layout is not repeated or t.dim() < 2
            assert (INPUTS[i] == t.data_ptr()) == is_read, (name, layout.__name__, tensor.name)
    for address, result in zip(OUTPUTS, results):
        if result.numel():
            assert address == result.data_ptr(), (name, layout.__name__)


LAYOUTS = as_it_is, in_rows, in_columns, expanded_once, repeated
REFUSED = {
    ("codec_unpack-0", in_rows),  # a coded line is what a peer wrote: contiguous
    ("ffn-2", expanded_once),  # seq is the first dimension's
}


def main():
    print("seed", sys.argv[1])
    torch.manual_seed(int(sys.argv[1]))
    for layout in LAYOUTS:
        for id, name, sample in all_samples():
            for is_enabled in (False, True) if (id, layout) not in REFUSED else ():
                with torch.set_grad_enabled(is_enabled):
                    check(name, *sample(), layout)
    print("copied nothing")


main()
