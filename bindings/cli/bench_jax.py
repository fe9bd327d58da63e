"""The rows of `./lamella bench` that need JAX: a jitted call beside a jitted x * 2, the split FFN beside XLA's.

Invariant: as bench_hosts.py.
"""

from bindings.cli.bench_figures import alone, compare, require, rounds
from bindings.cli.bench_hosts import program


def hosts_jax(n):
    """JAX: a jitted call above x * 2, the ffn of two processes against XLA on two CPU devices"""
    return call(n) + ffn(n)


def call(n):
    figures = rounds({"calls from JAX": program("jax_call.py")}, n)["calls from JAX"]
    require(figures, "all_reduce_above", "linear_above", "ffn_above")
    return [
        alone(f"jax {line.replace('_above', ', jitted, above x * 2')}", "us", values, "<= 1" if "above" in line else "")
        for line, values in figures.items()
    ]


def ffn(n):
    goals = {"ffn_bf16_m512": "<= 0.40", "ffn_bf16_m1": "<= 0.06", "ffn_f32_m512": "<= 0.90"}
    devices = ["env", "XLA_FLAGS=--xla_force_host_platform_device_count=2"]
    commands = {"ffn from JAX": program("jax_ffn.py", "lamella", ranks=2), "ffn by XLA": devices + program("jax_ffn.py", "xla")}
    figures = rounds(commands, n)
    ours, theirs = figures["ffn from JAX"], figures["ffn by XLA"]
    require(ours, *(case + "_packed" for case in goals))
    require(theirs, *goals)
    note = "two processes of one core; XLA: two CPU devices, shard_map and psum"
    rows = []
    for line, values in ours.items():
        case, _, weights = line.rpartition("_")
        goal = goals.get(case, "") if weights == "packed" else ""
        rows.append(compare(f"jax {case}, tp=2, {weights} weights", "us", values, "XLA", theirs[case], goal, note))
    return rows


GROUPS = (hosts_jax,)
