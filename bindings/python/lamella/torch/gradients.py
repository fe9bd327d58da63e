"""Which rows make up whose backward, and the autograd functions made from that.

BACKWARD names for each operator the tensors it saves and a function that gives gradients by the
names of its inputs. Only what is asked for is computed: an input's gradient without the weight's,
or the reverse.
Invariant: ranks of a group ask for the same gradients, so they make the same calls.
Leaves kernels to the rows it calls, being called to autograd.py; rows that are not named here have
no gradient.
"""

from collections import namedtuple

import torch

from lamella import rows
from lamella.group import place
from lamella.torch import accumulate, autograd, dtypes

ops = torch.ops.lamella
Backward = namedtuple("Backward", "saves like function")
BACKWARD = {}


class Saved:
    """One operator's call in its backward: saved tensors and attributes by name; `shapes` and
    `dtypes` of the inputs that were saved or noted; `dy`, the first result's gradient; `grads` of
    all results; `needs`, the inputs whose gradient is wanted; `marks`, of inputs whose gradient is
    added up elsewhere."""

    def __init__(self, row, entry, ctx, grads, needs):
        tensors = dict(zip(entry.saves, ctx.saved_tensors))
        self.__dict__.update(row.defaults)
        self.__dict__.update(zip(row.arguments[len(row.inputs) :], ctx.rest))
        self.__dict__.update(tensors)
        noted = {name: (t.shape, t.dtype) for name, t in tensors.items() if t is not None}
        noted.update(ctx.like)
        self.shapes = {name: shape for name, (shape, _) in noted.items()}
        self.dtypes = {name: dtype for name, (_, dtype) in noted.items()}
        self.grads, self.needs, self.marks = grads, needs, ctx.marks or {}
        self.dy = grads[0]
        if self.dy is None:  # the other ranks wait for their part in it
            shape, dtype = ctx.like[row.outputs[0].name]
            self.dy = ctx.saved_tensors[0].new_zeros(shape, dtype=dtype)
        self.ctx = ctx


def backward(name, saves="", like=""):
    """Makes a function of Saved the backward of a row. `saves` names tensors, results after
    inputs; `like` inputs of which only shape and dtype are noted."""

    def note(function):
        BACKWARD[name] = Backward(saves.split(), like.split(), function)
        return function

    return note


def register(row, operator):
    entry = BACKWARD.get(row.name)
    if not entry:
        return autograd.without(row)

    def run(ctx, grads, needs):
        if not row.communicates and all(grad is None for grad in grads):
            return {}
        return entry.function(Saved(row, entry, ctx, grads, needs))

    autograd.install(row, operator, entry, run)


# -- transfer: the gradient of a send is a receive of the other kind, and the reverse --


@backward("send_activation", like="x")
def _(c):
    dx, token = ops.recv_activation(
        c.grads[0],
        group=c.group,
        peer=c.peer,
        kind=1 - c.kind,
        tag=c.tag,
        shape=c.shapes["x"],
        dtype=dtypes.CODES[c.dtypes["x"]],
        codec=c.codec,
    )
    return {"x": dx, "token": token}


@backward("recv_activation")
def _(c):
    dy, dtoken = c.grads  # the sender waits for a gradient, so it gets one
    if dy is None:
        dy = torch.zeros(c.shape, dtype=dtypes.CODED[c.dtype or dtypes.CODES[torch.float32]])
    dtoken = torch.zeros(1) if dtoken is None else dtoken
    token = ops.send_activation(
        dy, dtoken, group=c.group, peer=c.peer, kind=1 - c.kind, tag=c.tag, codec=c.codec
    )
    return {"token": token}


# -- collectives and regions: each one's gradient is its partner --


@backward("all_reduce")
def _(c):
    return {"x": ops.all_reduce(c.dy, group=c.group)}


@backward("all_gather")
def _(c):
    return {"x": ops.reduce_scatter(c.dy, group=c.group, dim=c.dim, unit=c.unit)}


@backward("reduce_scatter", like="x")
def _(c):
    whole = c.shapes["x"][c.dim]
    return {"x": ops.all_gather(c.dy, group=c.group, dim=c.dim, total=whole, unit=c.unit)}


@backward("broadcast")
def _(c):
    return {"x": _at_root(c, ops.reduce(c.dy, group=c.group, root=c.root))}


@backward("reduce")
def _(c):
    return {"x": ops.broadcast(_at_root(c, c.dy), group=c.group, root=c.root)}


def _at_root(c, t):
    """What other ranks than the root gave in, or got out, counts for nothing."""
    return t if place(c.group)[0] == c.root else torch.zeros_like(t)


@backward("copy_to_group")
def _(c):
    return {"x": ops.reduce_from_group(c.dy, group=c.group)}


@backward("reduce_from_group")
def _(c):
    return {"x": ops.copy_to_group(c.dy, group=c.group)}


@backward("gather_from_group")
def _(c):
    return {"x": ops.scatter_to_group(c.dy, group=c.group, total=c.total, unit=c.unit)}


@backward("scatter_to_group", like="x")
def _(c):
    whole = c.shapes["x"][-1]
    return {"x": ops.gather_from_group(c.dy, group=c.group, total=whole, unit=c.unit)}


@backward("gather_sequence")
def _(c):
    return {"x": ops.reduce_scatter(c.dy, group=c.group, dim=0, unit=c.unit)}


@backward("scatter_sequence", like="x")
def _(c):
    whole = c.shapes["x"][0]
    return {"x": ops.gather_sequence(c.dy, group=c.group, total=whole, unit=c.unit)}


# -- linear --


def _before_act(c, dy, again):
    """The gradient before the activation; the pre-activation is made again if it was not saved."""
    if not c.act:
        return dy
    return ops.act_bwd(dy, c.aux if c.save else again(), act=c.act)


def _grads(c, name, tensors, results, **attributes):
    """Calls a row whose results are the gradients of the inputs named in `results`."""
    row = rows.table()[name]
    if c.marks.keys() & c.needs:
        return accumulate.run(row, tensors, results, c.marks, c.needs, **attributes)
    pairs = zip(row.outputs, results)
    wanted = {output.name: int(of in c.needs) for output, of in pairs if output.asked}
    found = getattr(ops, name)(*tensors, **attributes, **wanted)
    return dict(zip(results, found if isinstance(found, tuple) else (found,)))


@backward("linear", "x w b aux")
def _(c):
    dz = _before_act(c, c.dy.to(c.dtypes["x"]), lambda: ops.linear(c.x, c.w, c.b)[0])
    grads = {}
    if "x" in c.needs:
        grads["x"] = ops.linear_dgrad(dz, c.w)
    if c.needs & {"w", "b"}:
        grads.update(_grads(c, "linear_wgrad", [dz, c.x], "wb"))
    return grads


@backward("linear_col", "x w b aux")
def _(c):
    common = dict(group=c.group, seq=c.seq, chunks=c.chunks)
    dy = c.dy.to(c.dtypes["x"])
    if c.gather:
        dy = ops.scatter_to_group(dy, group=c.group, total=c.total, unit=c.unit)
    dz = _before_act(c, dy, lambda: ops.linear_col(c.x, c.w, c.b, **common)[0])
    return _split_linear(c, dz, "linear_col", common)


@backward("linear_row", "x w")
def _(c):
    common = dict(
        group=c.group, split=c.split, seq=c.seq, total=c.total, unit=c.unit, chunks=c.chunks
    )
    dy = c.dy.to(c.dtypes["x"])
    return _split_linear(c, dy, "linear_row", common)


def _split_linear(c, dy, name, common):
    """Both gradients in one call, so that one's sum travels beside the other's product."""
    if not c.needs & {"w", "b"}:
        return {"x": getattr(ops, name + "_dgrad")(dy, c.w, **common)}
    if "x" not in c.needs:
        return _grads(c, name + "_wgrad", [dy, c.x], "wb", **common)
    return _grads(c, name + "_bwd", [dy, c.x, c.w], "xwb", **common)


# -- ffn --


@backward("ffn", "x w1 b1 w2 aux")
def _(c):
    common = dict(group=c.group, seq=c.seq, chunks=c.chunks)
    dy = c.dy.to(c.dtypes["x"])
    aux = c.aux if c.save else ops.linear_col(c.x, c.w1, c.b1, **common)[0]
    common.update(act=c.act, gated=c.gated)
    if not c.needs & {"w1", "b1", "w2", "b2"}:
        dx, dz = ops.ffn_dgrad(dy, aux, c.w1, c.w2, **common)
        c.ctx.put_off = c.dy, dz  # for the weights of the same call, if their turn comes
        return {"x": dx}
    results = ["w1", "b1", "w2", "b2"]
    of, dz = getattr(c.ctx, "put_off", (None, None))
    if of is c.dy and "x" not in c.needs:
        c.ctx.put_off = None, None
        return _grads(c, "ffn_wgrad", [dy, c.x, aux, dz], results, **common)
    return _grads(c, "ffn_bwd", [dy, c.x, aux, c.w1, c.w2], ["x", *results], **common)


# -- norm --


@backward("rmsnorm", "x g")
def _(c):
    dy = c.dy.to(c.dtypes["x"])
    return _grads(c, "rmsnorm_bwd", [dy, c.x, c.g], "xg", eps=c.eps)


@backward("all_reduce_add_rmsnorm", "g next")
def _(c):
    """`next` is what was normed: its gradient is that of res and of every rank's x."""
    tensors = [c.dy.to(c.dtypes["next"]), c.next, c.g]
    found = _grads(c, "rmsnorm_bwd", tensors, ["next", "g"], eps=c.eps)
    total = found.pop("next")
    if c.grads[1] is not None:
        total = total + c.grads[1]
    if "x" in c.needs:
        found["x"] = ops.all_reduce(total, group=c.group)
    return {**found, "res": total}


# -- vocabulary --


@backward("embedding_vocab", "ids", like="w")
def _(c):
    total = c.total or c.shapes["w"][0] * place(c.group)[1]
    common = dict(group=c.group, total=total, unit=c.unit, seq=c.seq)
    return _grads(c, "embedding_vocab_wgrad", [c.dy.to(c.dtypes["w"]), c.ids], "w", **common)


@backward("cross_entropy_vocab", "logits targets lse")
def _(c):
    common = dict(group=c.group, total=c.total, unit=c.unit, ignore=c.ignore)
    return {"logits": ops.cross_entropy_vocab_bwd(c.dy, c.logits, c.targets, c.lse, **common)}
