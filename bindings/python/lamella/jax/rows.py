"""The operator table as JAX sees it: lamella.rows, and which tensors lie the other way round.

Invariant: nothing about an operator is written down here; a row that the library gains is there.
"""

from functools import cache

from lamella import rows

table = cache(rows.table)  # {name: Row}, in the table's order


def is_weight(row, tensor):
    """JAX keeps it [in, out], the row [N, K]. A table that is looked up in is [N, K] for both."""
    if row.name.startswith("embedding") or tensor.name.startswith("packed"):
        return False
    return tensor.name.lstrip("d").startswith("w")


def is_activation(row, tensor):
    """Any number of leading dimensions."""
    return tensor.name[0] not in "bs" and not tensor.name.lstrip("d").startswith(("w", "b", "g"))


def own_token(row):
    """It has a token among its own tensors (transfers)."""
    return any(t.name == "token" for t in row.inputs)


def has_attr(row, name):
    return any(a.name == name for a in row.attributes)
