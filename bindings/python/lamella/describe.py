"""What a row of the operator table says, in words: the text of help() and of the stubs.

A tensor's name says what it is (see abi/lamella_ops.def), an attribute's what it means; shapes are
the row's own rules.
Invariant: every name in the table is described here (tested).
Leaves the rows to rows.py.
"""

from __future__ import annotations

import re

from lamella.rows import Row, Tensor

FLOAT = "f32 or bf16 (on CUDA also f16), one dtype for all of a call"
TENSORS = [  # pattern of a name, its shape, its dtype
    ("token", "[1]", "f32: what orders calls"),
    ("ids|targets", "[...]", "int32 or int64, 0 to V - 1"),
    ("dloss|lse", "[...]", "f32, one value a token"),
    ("packed", "[R, cols]", "uint8"),
    ("coded", "[..., bytes of a coded line]", "uint8"),
    ("w.*", None, FLOAT + ", or packed: uint8"),
    ("s.*", "[1]", "f32 scale of fp8 values"),
    ("b.*", "[N]", "f32, or as the first input"),
    ("g", "[n]", "f32, or as the first input"),
    (".*", "[..., n]", FLOAT),
]
ATTRIBUTES = {
    "act": 'activation: "" gelu gelu_tanh silu relu relu2',
    "chunks": "pieces of rows that a sum and a product overlap in; 0 = chosen",
    "codec": "what travels: 0 as it is, 1 bf16, 2 f8e4m3, 3 f8e5m2, 4 int8",
    "cols": "columns",
    "dim": "the dimension that is gathered or scattered",
    "dtype": "the result's, DLPack's code | bits << 8; 0 = as the first input (fp8: bf16)",
    "eps": "is added to the mean of squares",
    "gated": "1: w1 is the rank's gate rows, then its up rows",
    "gather": "1: y is whole on every rank",
    "group": "lamella.Group.handle; 0 = alone",
    "ignore": "a target that counts for nothing",
    "kind": "0 an activation, 1 a gradient",
    "peer": "the other rank",
    "root": "the rank that has, or gets, the whole",
    "save": "1: aux, the pre-activation, is written",
    "seq": "the whole length of the first dimension, shared out over the ranks; 0 = not shared",
    "shape": "of what comes",
    "side": "0 forward, 1 dgrad",
    "split": "0: x is whole, and each rank takes its part",
    "tag": "compared with the peer's; -1 = only the order counts",
    "total": "the split dimension's whole length; 0 = every rank holds as much as this one",
    "unit": "elements of the split dimension that stay together; 0 = 1",
}
PURE_ERRORS = "Raises lamella.Error: InvalidArgument for what does not fit."
COMM_ERRORS = """\
Raises lamella.Error: InvalidArgument for what does not fit; Mismatch where ranks call
different things; PeerDead; PeerStalled after the group's deadline; Poisoned after those."""


def kind(tensor: Tensor, weights: str) -> str:
    """`x [..., n], f32 or ...`; weights: the shape of a weight."""
    name = tensor.name
    if name != "dloss" and re.match("d.", name):  # a gradient is what its tensor is
        name = name[1:]
    shape, dtype = next((s, t) for pattern, s, t in TENSORS if re.fullmatch(pattern, name))
    return "%s, %s" % (shape or weights, "any dtype" if "*" in tensor.marks else dtype)


def row(found: Row, weights: str = "[N, K]", hidden: tuple[str, ...] = ()) -> str:
    """Several lines. weights: how the host lays them out; hidden: attributes that it does not
    show, or names otherwise."""
    lines = ["%s -> %s" % (names(found.inputs), names(found.outputs)), ""]
    lines += ["%s: %s" % (mark(t), kind(t, weights)) for t in found.inputs]
    for a in found.attributes:
        if a.name not in hidden:
            lines.append("%s: %s" % (a.name, ATTRIBUTES.get(a.name, "of the row")))
    lines += [
        "returns %s: %s" % (mark(t), result(t, found.leader) if t.rule else kind(t, weights))
        for t in found.outputs
    ]
    lines += ["", COMM_ERRORS if found.communicates else PURE_ERRORS]
    return "\n".join(lines)


def result(tensor: Tensor, leader: str) -> str:
    """An output by its row's rule: its shape, and of which dtype it is."""
    shape, _, dtype = tensor.rule.partition("@")
    if shape.startswith("as "):
        return shape
    said = "%s, or what %s says" % (leader, dtype[1:]) if dtype[:1] == "$" else leader
    dtype = dtype if dtype and dtype[0] != "$" else "dtype as " + said
    return "[%s], %s" % (shape.strip(), dtype)


def mark(tensor: Tensor) -> str:
    return tensor.name + ("?" if tensor.optional else "")


def names(tensors: list[Tensor]) -> str:
    return ", ".join(map(mark, tensors))
