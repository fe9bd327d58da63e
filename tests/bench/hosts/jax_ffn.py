"""ffn forward from JAX at tp=2, H=4096 F=11008: Lamella's row on two processes of one core each, with
packed and with plain weights in turn, or the same in jitted XLA on two CPU devices, sharded by
shard_map with a psum.

Prints `ffn_DTYPE_mM figure unit spread`, of Lamella's `_packed` and `_plain`: the median over calls, of
the slower rank.

    ./lamella run --no-prefix -n 2 python jax_ffn.py lamella [calls]
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python jax_ffn.py xla [calls]
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from figures import show
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lamella
import lamella.jax as lj

HIDDEN, FFN = 4096, 11008
CASES = [(dtype, m) for dtype in ("bfloat16", "float32") for m in (512, 1)]
NAMES = {"bfloat16": "bf16", "float32": "f32"}


def fill(shape, dtype):
    """Values do not matter to time, but zeros might."""
    return jnp.full(shape, 1 / 64, dtype)


def count(calls, m):
    return 3 * calls if m == 1 else calls


def lamella_side(calls):
    group = lamella.Group.from_env()
    os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[group.rank]])
    meet = jax.jit(lambda x: lj.all_reduce(x, group=group, token=lj.new_token())[0])
    gather = jax.jit(lambda x: lj.all_gather(x, group=group, token=lj.new_token())[0])
    pack = jax.jit(lj.pack_weight)

    @jax.jit
    def ffn(x, w1, w2):
        return lj.ffn(x, w1, None, w2, act="gelu", group=group, token=lj.new_token())[0]

    for dtype, m in CASES:
        mine = FFN // group.size
        x, w1, w2 = fill((m, HIDDEN), dtype), fill((HIDDEN, mine), dtype), fill((mine, HIDDEN), dtype)
        sides = {"packed": (x, pack(w1), pack(w2)), "plain": (x, w1, w2)}
        times = {side: [] for side in sides}
        for i in range(count(calls, m) + 2):
            for side, tensors in sides.items():
                meet(jnp.zeros(1)).block_until_ready()
                begin = time.perf_counter_ns()
                ffn(*tensors).block_until_ready()
                took = np.asarray(gather(jnp.asarray([(time.perf_counter_ns() - begin) / 1e3])))
                times[side] += [float(took.max())] if i > 1 else []
        for side in sides if group.rank == 0 else ():
            show("ffn_%s_m%d_%s" % (NAMES[dtype], m, side), times[side])


def xla_side(calls):
    mesh = Mesh(np.array(jax.devices()), ("tp",))
    specs = P(), P(None, "tp"), P("tp", None)

    def shard(x, w1, w2):
        return jax.lax.psum(jax.nn.gelu(x @ w1, approximate=False) @ w2, "tp")

    ffn = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P()))

    for dtype, m in CASES:
        shapes = (m, HIDDEN), (HIDDEN, FFN), (FFN, HIDDEN)
        placed = [
            jax.device_put(fill(shape, dtype), NamedSharding(mesh, spec))
            for shape, spec in zip(shapes, specs)
        ]
        times = []
        for i in range(count(calls, m) + 2):
            begin = time.perf_counter_ns()
            ffn(*placed).block_until_ready()
            times += [(time.perf_counter_ns() - begin) / 1e3] if i > 1 else []
        show("ffn_%s_m%d" % (NAMES[dtype], m), times)


def main(side, calls=5):
    {"lamella": lamella_side, "xla": xla_side}[side](int(calls))


main(*sys.argv[1:])
