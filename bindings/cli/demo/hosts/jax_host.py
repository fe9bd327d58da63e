"""The demo's decoder in JAX: pure functions of a dictionary of weights, named as in the file.

Invariant: one chain of tokens goes through all calls of a micro-batch, so every rank of a group
makes them in the same order.
"""

import time

import jax
import jax.numpy as jnp
import numpy

import common
import lamella.jax as lj
from lamella import library

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def norm(x, gain):
    """Its arithmetic is float32, whatever x is."""
    wide = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(wide), -1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + common.NORM_EPSILON) * gain).astype(x.dtype)


def attention(plan, group, w, x, token):  # x [T, H], of whole sequences
    d = plan.head_size
    weights = w["attention.qkv.weight"], w["attention.out.weight"]
    qkv, token = lj.linear_col(x, weights[0], group=group, token=token, unit=3 * d)
    q, k, v = jnp.moveaxis(qkv.reshape(-1, plan.sequence, qkv.shape[1] // (3 * d), 3, d), 3, 0)
    o = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(len(x), -1)
    return lj.linear_row(o, weights[1], group=group, token=token, unit=d)


def layer(plan, group, w, x, token):
    out, token = attention(plan, group, w, norm(x, w["norm1.weight"]), token)
    mid = x + out
    out, token = lj.ffn(
        norm(mid, w["norm2.weight"]),
        w["ffn.gate_up.weight"],
        w2=w["ffn.down.weight"],
        act="silu",
        gated=1,
        group=group,
        token=token,
    )
    return mid + out, token


def decode(plan, stage, group, w, x):
    """The layers of one stage, [T, H] to [T, H]; the first one starts from tokens, the last one
    ends in logits."""
    dtype = DTYPES[plan.dtype]
    if stage == 0:
        x = (w["embedding.weight"][x] + w["position.weight"]).reshape(-1, plan.hidden).astype(dtype)
    token = lj.new_token()
    for i in common.layers_of(plan, stage):
        prefix = "layers.%d." % i
        own = {name[len(prefix) :]: v for name, v in w.items() if name.startswith(prefix)}
        own = {name: v.astype(dtype) if v.ndim > 1 else v for name, v in own.items()}
        x, token = layer(plan, group, own, x, token)
    if stage == len(plan.stages) - 1:
        x = norm(x, w["last_norm.weight"]) @ w["head.weight"].astype(dtype)
    return lj.after(x, token)


def function_of(plan, stage, group):
    """A stage as its pipeline calls it: the last one gives the micro-batch's part of the loss."""

    def function(w, x, *targets):
        y = decode(plan, stage, group, w, x)
        return loss_of(plan, y, *targets) if stage == len(plan.stages) - 1 else y

    return function


def loss_of(plan, logits, targets):
    chances = jax.nn.log_softmax(logits.astype(jnp.float32))
    found = jnp.take_along_axis(chances, targets.reshape(-1, 1), -1)
    return -jnp.mean(found) / plan.micro_batches


# -- weights --


def part_of(plan, name, w, rank, size):
    """A rank's part of a weight [out, in], as [in, out]."""
    kind, d = name.split(".")[-2], plan.head_size
    if kind == "qkv":
        [(begin, end)] = library.shard(len(w), rank, size, unit=3 * d)
        w = w[begin:end]
    elif kind == "gate_up":
        pieces = library.shard(plan.ffn, rank, size, gated=True)
        w = numpy.concatenate([w[begin:end] for begin, end in pieces])
    elif kind in ("out", "down"):
        [(begin, end)] = library.shard(w.shape[1], rank, size, unit=d if kind == "out" else 1)
        w = w[:, begin:end]
    return w if kind in ("embedding", "position") else numpy.ascontiguousarray(w.T)


def load(plan, stage, path, group):
    """This rank's part of a file's weights, or gradients."""
    return {
        name: jnp.asarray(part_of(plan, name, w, group.rank, group.size))
        for name, w in common.weights_of(plan, stage, path).items()
    }


# -- AdamW --


def adamw(w, grads, m, v, rate, step):
    b1, b2 = common.BETAS

    def update(w, g, m, v):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        direction = m / (1 - b1**step) / (jnp.sqrt(v / (1 - b2**step)) + common.EPSILON)
        decay = common.DECAY if w.ndim > 1 else 0
        return w - rate * (direction + decay * w), m, v

    found = jax.tree.map(update, w, grads, m, v)
    return [{name: three[i] for name, three in found.items()} for i in range(3)]


# -- training --


def stage_of(plan, worker, text, stage):
    def feed(step, micro):
        tokens, targets = text.batch(step, micro)
        return [tokens] * (stage == 0) + [targets] * (stage == len(plan.stages) - 1)

    params = load(plan, stage, plan.weights, worker.tp)
    f, cpu = function_of(plan, stage, worker.tp), jax.local_devices(backend="cpu")[0]
    return lj.PipelineStage(f, params, feed, split=True, device=cpu)  # as other hosts' stages


def train(plan, worker):
    text = common.Text(plan)
    stages = {s: stage_of(plan, worker, text, s) for s in worker.stages}
    moments = {s: jax.tree.map(jnp.zeros_like, [stage.params] * 2) for s, stage in stages.items()}
    update = jax.jit(adamw, donate_argnums=(0, 2, 3))
    share = jax.jit(lambda x: lj.all_reduce(x, group=worker.world, token=lj.new_token())[0])
    edges = [[plan.edge]] * (len(plan.stages) - 1)
    with lj.Pipeline(worker.schedule, stages, edges, group=worker.pp) as pipeline:
        for step in range(plan.steps):
            began = time.monotonic()
            loss = pipeline.run(step)
            grads = {s: stage.take_gradients() for s, stage in stages.items()}
            if step == 0:
                worker.tell_difference(beside(plan, worker, grads))
            rate = common.learning_rate(step, plan.steps)
            for s, stage in stages.items():
                stage.params, *moments[s] = update(
                    stage.params, grads[s], *moments[s], rate, step + 1
                )
            whole = share(jnp.array([[worker.share_of(loss)]]))
            worker.tell_step(step, whole.item(), began)  # no rank leaves before it is there


def beside(plan, worker, grads):
    """(name, gradient, the one of the file) of every weight here."""
    for s, own in grads.items():
        expected = load(plan, s, plan.gradients, worker.tp)
        yield from ((name, own[name], expected[name]) for name in own)


if __name__ == "__main__":
    common.run(train)
