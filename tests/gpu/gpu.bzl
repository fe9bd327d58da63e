"""Test programs whose tensors may lie on a CUDA device.

    gpu_test(name, srcs, deps)   srcs: as of a test for the CPU

makes `name`, a plain program for machines with a GPU (./lamella pack-gpu), and `name`_emulated_N, tests
of the same sources on the stand-in, one for each seed. There a test may have so many ranks (`ranks`):
what every rank computes is emulated, so more of them only take longer where they share nothing but
collectives, which tests/distributed/peers tests.
"""

load("//.bazel:lamella.bzl", "lam_binary", "lam_test")

_SEEDS = [1, 2]

def gpu_test(name, srcs, deps, seeds = _SEEDS, size = "medium", ranks = 1):
    lam_binary(
        name = name,
        testonly = True,
        srcs = srcs,
        deps = deps + ["//tests:check"],
    )
    for seed in seeds:
        lam_test(
            name = "%s_emulated_%d" % (name, seed),
            size = size,
            srcs = srcs,
            env = {
                "LAMELLA_TEST_RANKS": str(ranks),
                "LAMELLA_TEST_SEED": str(seed),
            },
            needs = [
                "cuda_headers",
                "cublas_headers",
            ],
            deps = deps + [":emulated"],
        )
