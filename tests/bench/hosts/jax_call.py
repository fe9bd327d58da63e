"""What a jitted call of an operator costs above a jitted x * 2.

Tensors are f32 [1, 1]; each call waits for its result. Prints `name figure unit spread`: the medians of
rounds in which all take their turns.

    jax_call.py [rounds]
"""

import sys

import jax
import jax.numpy as jnp
from figures import in_turn, show

import lamella.jax as lj

CALLS = 200
ROWS = {
    "all_reduce": lambda x: lj.all_reduce(x),  # of one rank: one tensor in, one out
    "linear": lambda x: lj.linear(x, x),
    "ffn": lambda x: lj.ffn(x, x, None, x),
}


def loop(function, x):
    call = jax.jit(function)

    def run():
        for _ in range(CALLS):
            call(x).block_until_ready()

    return run


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 101
    x = jnp.ones((1, 1))
    functions = {"doubled": lambda x: x * 2, **ROWS}
    times = in_turn({name: loop(f, x) for name, f in functions.items()}, rounds, CALLS)
    show("doubled", times["doubled"])
    for name in ROWS:
        show("%s_above" % name, [ours - theirs for ours, theirs in zip(times[name], times["doubled"])])


main()
