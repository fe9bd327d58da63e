"""Kernels in CUDA C: .cu files through nvcc, as an archive for lam_shared and lam_binary.

    lam_kernels(name, srcs, hdrs)   srcs: .cu; hdrs: labels of what they include

Machine code for what Lamella is tuned for, and one intermediate form (PTX), which the driver compiles
for all that comes after. Where there is no nvcc, the target is left out.
"""

load("@lamella_config//:defs.bzl", "HAVE", "NVCC")
load("@rules_cc//cc:defs.bzl", "cc_library")

_CARDS = {
    "compute_80": "sm_80",  # A100, and every 8.x
    "compute_90a": "sm_90a",  # H100, H200
    "compute_100": "[sm_100,compute_100]",  # B200, and later
}

def lam_kernels(name, srcs, hdrs, visibility = ["//visibility:public"]):
    if not HAVE["cuda"]:
        return
    flags = ["-std=c++17", "-O3", "-I.", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]
    flags += ["-Werror", "all-warnings"]
    flags += ["-gencode=arch=%s,code=%s" % card for card in _CARDS.items()]
    objects = [src.replace(".cu", ".cu.o") for src in srcs]
    for src, object in zip(srcs, objects):
        native.genrule(
            name = object + "_compiled",
            srcs = [src] + hdrs,
            outs = [object + "bj"],
            cmd = " ".join([NVCC] + flags + ["-c", "$(location %s)" % src, "-o", "$@"]),
            tags = ["manual"],
        )

        # As a tool it is compiled once, for all of Bazel's configurations: sanitizers do not see into it.
        native.genrule(
            name = object + "_made",
            outs = [object],
            cmd = "cp $(location %s) $@" % (object + "bj"),
            tools = [object + "bj"],
        )
    cc_library(
        name = name,
        srcs = objects,
        visibility = visibility,
    )
