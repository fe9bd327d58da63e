"""Test programs whose tensors may lie on a CUDA device.

    gpu_test(name, srcs, deps)   srcs: as of a test for the CPU; cudart: they call CUDA's runtime

makes `name`, a plain program for machines with a GPU (./lamella pack-gpu), and `name`_emulated_N, tests of
the same sources on the stand-in, one for each seed. There a test may have so many ranks (`ranks`):
more of them only take longer where they share nothing but collectives, which tests/distributed/peers
tests. env: more that is set there.
"""

load("@lamella_config//:defs.bzl", "CUDA")
load("//.bazel:lamella.bzl", "lam_binary", "lam_library", "lam_test")

_SEEDS = [1, 2]

CUDART = [
    "-L%s/lib64" % CUDA,
    "-lcudart_static",
    "-Wl,-Bstatic,-lstdc++,-Bdynamic",
    "-lrt",
]

_NEEDS = [
    "cuda_headers",
    "cublas_headers",
]

def gpu_test(name, srcs, deps, seeds = _SEEDS, size = "medium", ranks = 1, cudart = False, env = {}, tags = []):
    lam_library(
        name = name + "_cases",
        testonly = True,
        srcs = srcs,
        alwayslink = True,
        needs = _NEEDS if cudart else [],
        deps = deps + ["//tests:check"],
    )
    lam_binary(
        name = name,
        testonly = True,
        srcs = [],
        linkopts = CUDART if cudart else [],
        needs = ["cuda"] + _NEEDS if cudart else [],
        deps = [name + "_cases"],
    )
    for seed in seeds:
        lam_test(
            name = "%s_emulated_%d" % (name, seed),
            size = size,
            srcs = [],
            env = dict(env, LAMELLA_TEST_RANKS = str(ranks), LAMELLA_TEST_SEED = str(seed)),
            needs = _NEEDS,
            tags = tags + ([] if seed == seeds[0] else ["nosan"]),  # sanitizers: one is enough
            deps = [name + "_cases", ":emulated"],
        )
