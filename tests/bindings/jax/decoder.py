"""A small decoder twice: in plain JAX, whole, and in stages whose layers Lamella splits over a
group. Also AdamW.

Invariant: both read the same tree of weights; a rank's part of it is a plain slice. What is not
the model is NumPy's: JAX would compile each operation for each shape.
"""

import jax
import jax.numpy as jnp
import lamella.jax as lj
import numpy as np
from lamella import library

# Even over three ranks; over two, 2 + 1 heads and 11 + 10 of FFN.
VOCABULARY, HIDDEN, HEADS, FFN = 30, 24, 3, 21
HEAD_SIZE = HIDDEN // HEADS


def weights(chance, layers):
    """{embedding [V, H], layers: [...], norm [H], head [H, V]}"""

    def draw(*shape, scale=None):
        scale = shape[0] ** -0.5 if scale is None else scale
        return np.float32(scale * chance.standard_normal(shape))

    def layer():
        return {
            "norm1": 1 + draw(HIDDEN, scale=0.1),
            "qkv": draw(HIDDEN, 3, HEADS, HEAD_SIZE),
            "out": draw(HEADS, HEAD_SIZE, HIDDEN, scale=HIDDEN**-0.5),
            "norm2": 1 + draw(HIDDEN, scale=0.1),
            "up": draw(HIDDEN, FFN),
            "bias": draw(FFN, scale=0.1),
            "down": draw(FFN, HIDDEN),
        }

    return {
        "embedding": draw(VOCABULARY, HIDDEN, scale=1.0),
        "layers": [layer() for _ in range(layers)],
        "norm": 1 + draw(HIDDEN, scale=0.1),
        "head": draw(HIDDEN, VOCABULARY),
    }


# name -> (split dimension, its whole length)
SPLIT = {
    "embedding": (0, VOCABULARY),
    "qkv": (2, HEADS),
    "out": (0, HEADS),
    "up": (1, FFN),
    "bias": (0, FFN),
    "down": (0, FFN),
    "head": (1, VOCABULARY),
}


def shard(tree, rank, size):
    """A rank's part of weights, or of their gradients."""

    def part(path, x):
        name = path[-1].key
        if name not in SPLIT:
            return x
        dim, total = SPLIT[name]
        ((begin, end),) = library.shard(total, rank, size)
        return np.asarray(x)[(slice(None),) * dim + (slice(begin, end),)]

    return jax.tree_util.tree_map_with_path(part, tree)


def stage_weights(tree, stage, stages):
    """What one of several stages holds; the layers must divide."""
    n = len(tree["layers"]) // stages
    held = {"layers": tree["layers"][stage * n : (stage + 1) * n]}
    if stage == 0:
        held["embedding"] = tree["embedding"]
    if stage == stages - 1:
        held.update(norm=tree["norm"], head=tree["head"])
    return held


def normed(x, g):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * g


def attention(qkv):
    """qkv [B, T, 3, heads, D] -> [B, T, heads, D], causal."""
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, scores, -1e9)), v)


# -- whole, in plain JAX --


def whole_layer(w, x):
    h = jnp.einsum("bth,hknd->btknd", normed(x, w["norm1"]), w["qkv"])
    x = x + jnp.einsum("btnd,ndh->bth", attention(h), w["out"])
    h = jax.nn.gelu(normed(x, w["norm2"]) @ w["up"] + w["bias"], approximate=False)
    return x + h @ w["down"]


def whole(w, ids, targets):
    """The mean loss of a batch [B, T]."""
    x = w["embedding"][ids]
    for layer in w["layers"]:
        x = whole_layer(layer, x)
    logs = jax.nn.log_softmax(normed(x, w["norm"]) @ w["head"])
    return -jnp.mean(jnp.take_along_axis(logs, targets[..., None], -1))


# -- in stages, split over a group --


def split_layer(w, x, group, token):
    at, many = {"group": group}, x.shape[:2]
    heads = w["qkv"].shape[2]
    h = normed(x, w["norm1"])
    h, token = lj.linear_col(h, w["qkv"].reshape(HIDDEN, -1), token=token, **at)
    h = attention(h.reshape(*many, 3, heads, HEAD_SIZE)).reshape(*many, -1)
    y, token = lj.linear_row(h, w["out"].reshape(-1, HIDDEN), token=token, **at)
    x = x + y
    h = normed(x, w["norm2"])
    y, token = lj.ffn(h, w["up"], w["bias"], w["down"], act="gelu", token=token, **at)
    return x + y, token


def stage(number, stages, group, n_micro):
    """f(params, x?, fed) of a stage; the loss is this micro-batch's part of the mean."""
    at = {"total": VOCABULARY, "group": group}

    def f(w, *given):
        token, x = lj.new_token(), given[0]
        if number == 0:
            x, token = lj.embedding_vocab(x, w["embedding"], token=token, **at)
        for layer in w["layers"]:
            x, token = split_layer(layer, x, group, token)
        if number == stages - 1:
            h = normed(x, w["norm"])
            logits, token = lj.linear_col(h, w["head"], group=group, token=token)
            loss, _, token = lj.cross_entropy_vocab(logits, given[-1], token=token, **at)
            x = jnp.mean(loss) / n_micro
        return lj.after(x, token)

    return f


def feed(number, stages, ids, targets):
    """ids, targets: [steps, micro-batches, B, T]"""

    def fed(step, micro):
        found = [ids[step, micro]] if number == 0 else []
        return (*found, targets[step, micro]) if number == stages - 1 else tuple(found)

    return fed


# -- AdamW --


def adamw(params, gradients, state, rate=0.02, betas=(0.9, 0.99), eps=1e-3, decay=0.01):
    """state: {"n", "m", "v"}, or None before the first step."""
    zeros = jax.tree.map(np.zeros_like, params)
    state = state or {"n": 0, "m": zeros, "v": zeros}
    n = state["n"] + 1
    m = jax.tree.map(lambda m, g: betas[0] * m + (1 - betas[0]) * g, state["m"], gradients)
    v = jax.tree.map(lambda v, g: betas[1] * v + (1 - betas[1]) * g * g, state["v"], gradients)

    def moved(p, m, v):
        step = (m / (1 - betas[0] ** n)) / (np.sqrt(v / (1 - betas[1] ** n)) + eps)
        return np.float32(p - rate * (step + decay * p))

    return jax.tree.map(moved, params, m, v), {"n": n, "m": m, "v": v}


def far(got, want):
    """The largest difference between two trees, relative to the largest value of each array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(g, "d") - np.asarray(w, "d"))) / np.max(np.abs(w)))
        for g, w in pairs
    )


# -- training --

STEPS, MICRO, BATCH, TOKENS = 3, 4, 2, 6


def start(seed, layers=2):
    """(weights, ids and targets [2, STEPS, MICRO, BATCH, TOKENS])"""
    chance = np.random.default_rng(seed)
    drawn = chance.integers(0, VOCABULARY, (2, STEPS, MICRO, BATCH, TOKENS))
    return weights(chance, layers), drawn.astype("i4")


def train_whole(seed):
    """What one process in plain JAX gets: ([(loss, gradients) of each step], weights after)."""
    params, drawn = start(seed)
    step_of, state, found = jax.jit(jax.value_and_grad(whole)), None, []
    for step in range(STEPS):
        loss, gradients = step_of(params, *drawn[:, step].reshape(2, -1, TOKENS))
        found.append((float(loss), jax.tree.map(np.asarray, gradients)))
        params, state = adamw(params, found[-1][1], state)
    return found, params


def train(schedule, group, tensor, seed, want, split=False, any_order=False):
    """Trains over group (pipeline) x tensor, either may be None. Gives the largest differences
    from `want`, train_whole's: of a loss, of a gradient, of the weights after the last step."""
    all_of, drawn = start(seed)
    number, stages = group.rank if group else 0, schedule.n_stages
    place = (tensor.rank, tensor.size) if tensor else (0, 1)

    def mine(tree):
        return shard(stage_weights(tree, number, stages), *place)

    f = stage(number, stages, tensor, MICRO)
    own = lj.PipelineStage(f, mine(all_of), feed(number, stages, *drawn), split=split)
    edges = [[((BATCH, TOKENS, HIDDEN), jnp.float32)]] * (stages - 1)
    params, state, worst = mine(all_of), None, [0.0, 0.0]
    at = {"group": group, "tensor": tensor, "any_order": any_order}
    with lj.Pipeline(schedule, {number: own}, edges, **at) as pipeline:
        for step, (wanted_loss, wanted) in enumerate(want[0]):
            loss = pipeline.run(step)
            gradients = jax.tree.map(np.asarray, own.take_gradients())
            if number == stages - 1:
                worst[0] = max(worst[0], abs(loss - wanted_loss) / wanted_loss)
            worst[1] = max(worst[1], far(gradients, mine(wanted)))
            params, state = adamw(params, gradients, state)
            own.params = params
    return (*worst, far(params, mine(want[1])))
