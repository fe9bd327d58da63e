"""The house's rules: what every C target of Lamella is compiled with, said once.

    lam_library(name, srcs, hdrs, deps)           a static archive; nothing in it is exported
    lam_shared(name, srcs, deps, version_script)  a shared object; the script names its exports
    lam_binary(name, srcs, deps)                  a program
    lam_test(name, srcs, deps)                    a program of TESTs; it gets //tests:check

Each takes `needs`, names in @lamella_config (mpi, cuda, torch, jax, ...): where one is missing, the
target is left out.
Sources that end in .cc or .cpp are compiled as C++17; a target holds one language.
"""

load("@lamella_config//:defs.bzl", "GCC", "HAVE")
load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]

# gcc's -O2 joins neighbouring numbers into vectors. They come from registers and are read again one by
# one: a call takes 12 to 14 ns longer. Targets of numeric loops take it back (-ftree-slp-vectorize).
# Where functions begin anywhere, a call's time moves by 10 ns with whatever was edited elsewhere.
_OPTIMIZED = ["-O2", "-fno-tree-slp-vectorize", "-falign-functions=64", "-g"]
_COMMON = _WARNINGS + ["-D_GNU_SOURCE", "-fvisibility=hidden"] + _OPTIMIZED
_PUBLIC = ["//visibility:public"]
_LINK = ["-Wl,--as-needed", "-lm", "-lpthread", "-ldl"]
_LINK_APART = _LINK + ["-fno-lto"]

def _is_cpp(srcs):
    return any([s.endswith(".cc") or s.endswith(".cpp") for s in srcs])

# gcc's objects can also be optimized as a whole: a call through liblamella.so takes 12 to 40 ns less.
# Tests and most programs take them as ordinary objects, which link in an instant.
def _whole(flags):
    return select({"//.bazel:apart": [], "//conditions:default": flags}) if GCC else []

def _copts(srcs, copts):
    return (["-std=c++17"] if _is_cpp(srcs) else ["-std=c11"]) + _COMMON + copts

def _is_here(needs):
    for name in needs:
        if name not in HAVE:
            fail("needs names %s; known are %s" % (name, ", ".join(HAVE.keys())))
    return all([HAVE[name] for name in needs])

def lam_library(name, srcs = [], copts = [], needs = [], visibility = _PUBLIC, **kwargs):
    if _is_here(needs):
        cc_library(
            name = name,
            srcs = srcs,
            copts = _copts(srcs, copts) + _whole(["-flto=auto", "-ffat-lto-objects"]),
            linkstatic = True,
            visibility = visibility,
            **kwargs
        )

def lam_binary(
        name,
        srcs,
        copts = [],
        linkopts = [],
        needs = [],
        whole = False,
        visibility = _PUBLIC,
        **kwargs):
    """whole: optimized across its files and libraries, as liblamella.so is."""
    if _is_here(needs):
        cc_binary(
            name = name,
            srcs = srcs,
            copts = _copts(srcs, copts),
            linkopts = (_LINK + _whole(["-flto=auto", "-O2"]) if whole else _LINK_APART) + linkopts,
            linkstatic = True,
            visibility = visibility,
            **kwargs
        )

def lam_shared(name, srcs, version_script, deps = [], linkopts = [], **kwargs):
    """`name` is the SONAME. It stays loaded once opened, for hosts keep pointers into it."""
    lam_binary(
        name = name,
        srcs = srcs,
        deps = deps + [version_script],
        linkopts = [
            "-Wl,--version-script=$(location %s)" % version_script,
            "-Wl,-soname,%s" % name,
            "-Wl,-z,nodelete",
            "-Wl,-z,defs",
            "-Wl,--exclude-libs,ALL",
            "-static-libgcc",  # for its table of processor features
        ] + linkopts,
        linkshared = True,
        whole = True,
        **kwargs
    )

def lam_test(name, srcs, deps = [], copts = [], linkopts = [], needs = [], **kwargs):
    """Tag "threads": also run under the thread sanitizer. Tag "nosan": under no sanitizer. Tag "cpu:2":
    its ranks, or a product's threads, keep two processors busy; others are run beside something."""
    kwargs.setdefault("size", "small")
    if _is_here(needs):
        cc_test(
            name = name,
            srcs = srcs,
            deps = deps + ["//tests:check"],
            copts = _copts(srcs, copts),
            linkopts = _LINK_APART + linkopts,
            linkstatic = True,
            **kwargs
        )
