"""One call of every operator of the table, alone (group 0), with random data.

A sample is (arguments, keywords); tensors that may have a gradient are floating. SAMPLES names
every row of the library, so that a new row without a sample fails a test.
"""

import torch

from lamella import library

T, K, N, F, V = 5, 7, 3, 6, 9  # tokens, in, out, ffn width, vocabulary


def rand(*dims):
    return torch.randn(*dims)


def ids(*dims):
    return torch.randint(V, dims)


def collective(**more):
    return lambda: ([rand(2, T, K)], more)


def linear(**more):
    return lambda: ([rand(2, T, K), rand(N, K), rand(N)], more)


def gated_ffn():
    return [rand(T, K), rand(2 * F, K), rand(2 * F), rand(N, F), rand(N)]


def packed():
    w = rand(N, K)
    return [w], dict(side=0, cols=library.packed_cols(2 | 32 << 8, N, K))


SAMPLES = {
    # These two need a peer: see torch_ranks.py.
    "send_activation": None,
    "recv_activation": None,
    "all_reduce": collective(),
    "all_gather": collective(dim=1),
    "reduce_scatter": collective(dim=1),
    "broadcast": collective(root=0),
    "reduce": collective(root=0),
    "copy_to_group": collective(),
    "reduce_from_group": collective(),
    "gather_from_group": collective(),
    "scatter_to_group": collective(unit=1),
    "gather_sequence": collective(total=2),
    "scatter_sequence": collective(),
    "linear": linear(act="gelu"),
    "linear_dgrad": lambda: ([rand(2, T, N), rand(N, K)], {}),
    "linear_wgrad": lambda: ([rand(2, T, N), rand(2, T, K)], {}),
    "act_bwd": lambda: ([rand(T, N), rand(T, N)], dict(act="silu")),
    "linear_col": linear(act="gelu_tanh", save=1),
    "linear_col_dgrad": lambda: ([rand(T, N), rand(N, K)], {}),
    "linear_col_wgrad": lambda: ([rand(T, N), rand(T, K)], dict(db=0)),
    "linear_row": linear(),
    "linear_row_dgrad": lambda: ([rand(T, N), rand(N, K)], {}),
    "linear_row_wgrad": lambda: ([rand(T, N), rand(T, K)], {}),
    "linear_col_bwd": lambda: ([rand(T, N), rand(T, K), rand(N, K)], {}),
    "linear_row_bwd": lambda: ([rand(T, N), rand(T, K), rand(N, K)], dict(db=0)),
    "ffn": lambda: (gated_ffn(), dict(act="silu", gated=1, save=1)),
    "ffn_dgrad": lambda: ([rand(T, N), rand(T, F), rand(F, K), rand(N, F)], dict(act="gelu")),
    "ffn_wgrad": lambda: ([rand(T, N), rand(T, K), rand(T, F), rand(T, F)], dict(act="gelu")),
    "ffn_bwd": lambda: (
        [rand(T, N), rand(T, K), rand(T, F), rand(F, K), rand(N, F)],
        dict(act="gelu", db1=0),
    ),
    "embedding_vocab": lambda: ([ids(2, T), rand(V, K)], {}),
    "embedding_vocab_wgrad": lambda: ([rand(2, T, K), ids(2, T)], dict(total=V)),
    "cross_entropy_vocab": lambda: ([rand(2, T, V), ids(2, T)], dict(total=V)),
    "cross_entropy_vocab_bwd": lambda: (
        [rand(T), rand(T, V), ids(T), torch.full((T,), 3.0)],
        dict(total=V),
    ),
    "rmsnorm": lambda: ([rand(2, T, K), rand(K)], dict(eps=1e-5)),
    "rmsnorm_bwd": lambda: ([rand(2, T, K), rand(2, T, K), rand(K)], dict(eps=1e-5)),
    "all_reduce_add_rmsnorm": lambda: ([rand(2, T, K), rand(2, T, K), rand(K)], dict(eps=1e-5)),
    "pack_weight": packed,
    "codec_pack": lambda: ([rand(T, 130)], dict(codec=2)),
    "codec_unpack": lambda: (
        [torch.zeros(T, 138, dtype=torch.uint8)],
        dict(codec=2, cols=130, dtype=2 | 32 << 8),
    ),
}

# More calls of rows that have a gradient: what the first sample leaves out.
MORE = {
    "linear": [linear(), linear(act="relu", save=1), lambda: ([rand(T, K), rand(N, K)], {})],
    "linear_col": [
        linear(gather=1, act="silu"),
        linear(seq=2, act="relu2"),
        lambda: ([rand(T, K), rand(N, K), None], dict(chunks=2)),
    ],
    "linear_row": [linear(split=0, total=K), linear(seq=2)],
    "ffn": [
        lambda: ([rand(T, K), rand(F, K), None, rand(N, F), None], dict(act="gelu")),
        lambda: ([rand(T, K), rand(F, K), rand(F), rand(N, F), rand(N)], dict(act="relu", seq=T)),
    ],
    "cross_entropy_vocab": [lambda: ([rand(3, V), torch.tensor([1, -100, 8])], {})],
    "scatter_sequence": [lambda: ([rand(6)], {})],
}


def all_samples():
    """(id, name, sample) of everything above that can run alone."""
    for name, sample in SAMPLES.items():
        for i, each in enumerate([sample, *MORE.get(name, [])]):
            if each:
                yield "%s-%d" % (name, i), name, each
