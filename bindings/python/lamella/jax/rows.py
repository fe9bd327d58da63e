"""The operator table, read from the library: what each row's tensors and attributes are called.

Invariant: nothing about an operator is written down here; a row that the library gains is there.
"""

from dataclasses import dataclass
from functools import lru_cache

from lamella.jax import native

N_OPS = 128
# Tables whose rows are looked up, not multiplied: JAX, too, keeps them [N, K].
LOOKED_UP = "embedding"


@dataclass(frozen=True)
class TensorOf:
    name: str
    optional: bool
    accumulated: bool
    weight: bool


@dataclass(frozen=True)
class AttrOf:
    name: str
    kind: str  # i f s I
    default: int


@dataclass(frozen=True)
class Row:
    id: int
    name: str
    inputs: tuple
    outputs: tuple
    attrs: tuple
    communicates: bool

    @property
    def own_token(self):
        """It has a token among its own tensors (transfers)."""
        return any(t.name == "token" for t in self.inputs)

    def in_names(self):
        return [t.name for t in self.inputs]

    def out_names(self):
        return [t.name for t in self.outputs]

    def has_attr(self, name):
        return any(a.name == name for a in self.attrs)


def read_tensor(word, looked_up):
    name = word.rstrip("?+*~")
    weight = not looked_up and name.lstrip("d").startswith("w") and not name.startswith("packed")
    return TensorOf(name, "?" in word, "+" in word, weight)


def read_attr(word):
    name, _, rest = word.partition(":")
    kind, _, default = rest.partition("=")
    return AttrOf(name, kind, int(default or 0))


def read_row(words):
    head, inputs, outputs, attrs, _, effect = [part.strip() for part in words.split(" | ")]
    number, name = head.split()
    looked_up = name.startswith(LOOKED_UP)
    return Row(
        int(number),
        name,
        tuple(read_tensor(word, looked_up) for word in inputs.split()),
        tuple(read_tensor(word, looked_up) for word in outputs.split()),
        tuple(read_attr(word) for word in attrs.split()),
        effect == "COMM",
    )


@lru_cache(maxsize=None)
def table():
    """{name: Row}, in the table's order."""
    lam, _ = native.libraries()
    words = [lam.lam_op_row(op) for op in range(N_OPS)]
    rows = [read_row(found.decode()) for found in words if found]
    return {row.name: row for row in rows}
