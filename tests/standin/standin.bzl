"""Kernels for the stand-in: .cu files compiled as C++ by the host's compiler.

    standin_kernels(name, srcs, hdrs, deps)   srcs: .cu; what they include that is no library: hdrs
"""

load("//.bazel:lamella.bzl", "lam_library")

# An access that is not aligned to its size traps, as it does on a card.
_AS_ON_A_CARD = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]

def standin_kernels(name, srcs, hdrs = [], deps = [], copts = [], needs = [], **kwargs):
    units = []
    for src in srcs:
        unit = "%s_%s.cc" % (name, src.replace("/", "_").replace(":", "_").replace(".", "_"))
        native.genrule(
            name = unit + "_unit",
            srcs = [src],
            outs = [unit],
            cmd = "echo '#include \"$(location %s)\"' > $@" % src,
            testonly = True,
        )
        units.append(unit)
    lam_library(
        name = name,
        testonly = True,
        srcs = units,
        textual_hdrs = srcs + hdrs,
        copts = ["-includetests/standin/kernel_shim.h"] + _AS_ON_A_CARD + copts,
        needs = ["cuda_headers"] + needs,
        deps = deps + ["//tests/standin"],
        **kwargs
    )
