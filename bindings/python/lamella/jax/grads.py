"""Gradients: which rows make up whose backward, and the custom_vjp that runs them.

The cotangent of a call's token is the token of its backward, and what the backward gives back for
it goes on to the backward of the call before: so the backward communicates in exactly the reverse
order, on every rank. It starts from the last token of the forward, by `after`.
Invariant: only what is asked for is computed: the gradient for x without that of w takes the dgrad
row alone, and the reverse; a row that does both in one call is taken where both are wanted.
Leaves the calls to call.py.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lamella.jax import native, rows
from lamella.jax.call import call, holds_several, rank_of


@dataclass(frozen=True)
class Site:
    """A call, without its arrays: what JAX compiles for. group: anything with handle and size."""

    name: str
    attrs: tuple  # of (name, value)
    group: object

    @property
    def row(self):
        return rows.table()[self.name]

    def get(self, name, otherwise=0):
        return dict(self.attrs).get(name, otherwise)

    def kept(self, row, changes):
        """Those of its attributes that `row` has too, with changes."""
        kept = {name: value for name, value in self.attrs if rows.has_attr(row, name)}
        return {name: value for name, value in dict(kept, **changes).items() if value is not None}


class Backward:
    """One backward under way: its calls follow each other by the token."""

    def __init__(self, site, inputs, saved, wanted, token):
        self.site, self.inputs, self.saved = site, inputs, saved
        self.wanted, self.token = wanted, token

    def call(self, name, inputs, like=None, skip=(), alone=False, **changes):
        """like: {output: array whose dtype it takes}; alone: the row needs no other rank."""
        row = rows.table()[name]
        dtypes = {name: x.dtype for name, x in (like or {}).items() if x is not None}
        follows = row.communicates and not alone
        found, after = call(
            row,
            inputs,
            self.site.kept(row, dict(dict(dtype=None, codec=None), **changes)),
            self.site.group if follows and rows.has_attr(row, "group") else None,
            self.token if follows else None,
            dtypes,
            skip,
        )
        self.token = after if follows else self.token
        return found

    @property
    def weights_alone(self):
        """Weight gradients are to wait, and can: they need nothing of other ranks."""
        return tracing.apart and not self.site.get("seq") and self.site.get("split", 1)


class Tracing(threading.local):
    apart = False


tracing = Tracing()


@contextmanager
def apart():
    """Backwards traced inside compute input and weight gradients by calls of their own, the
    latter out of the chain where they need no other rank: they can be put off."""
    before, tracing.apart = tracing.apart, True
    try:
        yield
    finally:
        tracing.apart = before


# -- the table: row -> function(Backward, {output: cotangent}) -> {input: cotangent} --


def layer(dgrad, wgrad, both=None):
    def backward(b, d):
        dy, x, w, bias = d["y"].astype(b.inputs["x"].dtype), *map(b.inputs.get, "xwb")
        if b.site.get("gather"):
            dy = b.call("scatter_to_group", {"x": dy})["y"]
        if b.site.get("act", ""):
            dy = b.call("act_bwd", {"dy": dy, "aux": b.saved["aux"]})["dz"]
        weights = {"like": {"dw": w, "db": bias}, "skip": () if "b" in b.wanted else ("db",)}
        wants_w = bool({"w", "b"} & b.wanted)
        if both and wants_w and "x" in b.wanted and not tracing.apart:
            found = b.call(both, {"dy": dy, "x": x, "w": w}, **weights)
        else:
            found = b.call(dgrad, {"dy": dy, "w": w}) if "x" in b.wanted else {}
            if wants_w:
                found.update(b.call(wgrad, {"dy": dy, "x": x}, alone=b.weights_alone, **weights))
        return {"x": found.get("dx"), "w": found.get("dw"), "b": found.get("db")}

    return backward


def ffn(b, d):
    given = {name: b.inputs[name] for name in ("x", "w1", "w2")}
    given.update(dy=d["y"].astype(given["x"].dtype), aux=b.saved["aux"])
    weights = {
        "like": {"d" + name: b.inputs.get(name) for name in ("w1", "b1", "w2", "b2")},
        "skip": tuple("d" + name for name in ("b1", "b2") if name not in b.wanted),
    }
    wants_w = bool(b.wanted - {"x"})
    if wants_w and not (tracing.apart and "x" in b.wanted):
        found = b.call("ffn_bwd", given, **weights)
    else:
        found = b.call("ffn_dgrad", given)
        if wants_w:
            given["dz"] = found["dz"]
            found.update(b.call("ffn_wgrad", given, alone=b.weights_alone, **weights))
    return {name: found["d" + name] for name in b.wanted}


def partner(name, length=None, **changes):
    """A row whose gradient is another row; length: the dimension of x that it must make whole."""

    def backward(b, d):
        more = dict(changes)
        if length is not None:
            at = b.site.get("dim") if length == "dim" else length
            more["total"] = b.inputs["x"].shape[at]
        return {"x": b.call(name, {"x": d["y"]}, **more)["y"]}

    return backward


def broadcast(b, d):
    """A sum is the root's alone: what is elsewhere in its place was never written, nor read."""
    found = partner("reduce")(b, d)["x"]
    group = b.site.group
    if group is None:
        return {"x": found}
    rank = rank_of(group)[0] if holds_several(group) else group.rank
    return {"x": jnp.where(rank == b.site.get("root"), found, 0)}


def same(b, d):
    return {"x": d["y"]}


def send(b, d):
    x = b.inputs["x"]
    found = b.call(
        "recv_activation",
        {},
        kind=1 - b.site.get("kind"),
        shape=x.shape,
        dtype=native.dtype_number(x.dtype),
        codec=b.site.get("codec"),
    )
    return {"x": found["y"]}


def receive(b, d):
    kind = 1 - b.site.get("kind")
    b.call("send_activation", {"x": d["y"]}, kind=kind, codec=b.site.get("codec"))
    return {}


def embedding(b, d):
    w, ranks = b.inputs["w"], b.site.group.size if b.site.group else 1
    total = b.site.get("total") or w.shape[0] * ranks
    given = {"dy": d["y"], "ids": b.inputs["ids"]}
    found = b.call("embedding_vocab_wgrad", given, {"dw": w}, total=total)
    return {"w": found["dw"]}


def cross_entropy(b, d):
    names = {name: b.inputs[name] for name in ("logits", "targets")}
    found = b.call("cross_entropy_vocab_bwd", {"dloss": d["loss"], "lse": b.saved["lse"], **names})
    return {"logits": found["dlogits"]}


def rmsnorm(b, d):
    given = {"dy": d["y"].astype(b.inputs["x"].dtype), **b.inputs}
    skip = () if "g" in b.wanted else ("dg",)
    found = b.call("rmsnorm_bwd", given, {"dg": b.inputs["g"]}, skip=skip)
    return {"x": found["dx"], "g": found.get("dg")}


def sum_and_norm(b, d):
    """`next` is what was normed: its gradient is that of res and of every rank's x."""
    given = {"dy": d["y"], "x": b.saved["next"], "g": b.inputs["g"]}
    skip = () if "g" in b.wanted else ("dg",)
    found = b.call("rmsnorm_bwd", given, {"dg": b.inputs["g"]}, skip=skip)
    total = found["dx"] + d["next"]
    x = b.call("all_reduce", {"x": total})["y"] if "x" in b.wanted else None
    return {"x": x, "res": total, "g": found.get("dg")}


GRADS = {
    "linear": layer("linear_dgrad", "linear_wgrad"),
    "linear_col": layer("linear_col_dgrad", "linear_col_wgrad", "linear_col_bwd"),
    "linear_row": layer("linear_row_dgrad", "linear_row_wgrad", "linear_row_bwd"),
    "ffn": ffn,
    "all_reduce": partner("all_reduce"),
    "all_gather": partner("reduce_scatter"),
    "reduce_scatter": partner("all_gather", length="dim"),
    "broadcast": broadcast,
    "reduce": partner("broadcast"),
    "copy_to_group": partner("reduce_from_group"),
    "reduce_from_group": same,
    "gather_from_group": partner("scatter_to_group"),
    "scatter_to_group": partner("gather_from_group", length=-1),
    "gather_sequence": partner("reduce_scatter", dim=0),
    "scatter_sequence": partner("gather_sequence", length=0),
    "send_activation": send,
    "recv_activation": receive,
    "embedding_vocab": embedding,
    "cross_entropy_vocab": cross_entropy,
    "rmsnorm": rmsnorm,
    "all_reduce_add_rmsnorm": sum_and_norm,
}
# Outputs that backwards alone are for; aux is written only when it is asked for.
CONSTANT = ("aux", "lse")
SAVED = (*CONSTANT, "next")  # what a backward reads

# -- custom_vjp --


@jax.tree_util.register_static
@dataclass(frozen=True)
class Wanted:
    names: frozenset


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(site, inputs, token):
    """({output: array or None}, token)."""
    return call(site.row, inputs, dict(site.attrs), site.group, token)


def forward(site, inputs, token):
    values = {name: None if x is None else x.value for name, x in inputs.items()}
    wanted = frozenset(name for name, x in inputs.items() if x is not None and x.perturbed)
    token = None if token is None else token.value
    saves = wanted and (site.name == "ffn" or site.get("act", ""))
    attrs = dict(site.attrs, **({"save": 1} if saves else {}))
    outputs, after = call(site.row, values, attrs, site.group, token)
    saved = {name: outputs[name] for name in SAVED if outputs.get(name) is not None}
    saved["token"] = after
    if "aux" in outputs and not site.get("save"):
        outputs["aux"] = None
    return (outputs, after), (values, saved, Wanted(wanted))


def backward(site, kept, cotangents):
    inputs, saved, wanted = kept
    outputs, token = cotangents
    outputs = {name: None if d is None else whole(d) for name, d in outputs.items()}
    if isinstance(token, SymbolicZero):
        token = saved["token"]  # nothing follows: at least after its own forward
    elif rows.own_token(site.row):
        token = token + saved["token"]  # a token may be all that a rank's loss is made of
    b = Backward(site, inputs, saved, wanted.names, token)
    found = {}
    if wanted.names or rows.own_token(site.row):
        found = GRADS[site.name](b, outputs)
    given = {
        name: None if x is None or found.get(name) is None else found[name].astype(x.dtype)
        for name, x in inputs.items()
    }
    return given, None if token is None else b.token


def whole(cotangent):
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


apply.defvjp(forward, backward, symbolic_zeros=True)


@jax.custom_vjp
def after(x: jax.Array, token: jax.Array) -> jax.Array:
    """x, such as a loss, as it is after all calls of a chain: its backward starts when the whole
    forward has communicated. x: any array; token: the chain's last."""
    del token
    return x


after.defvjp(lambda x, token: (x, token), lambda token, d: (d, token))
