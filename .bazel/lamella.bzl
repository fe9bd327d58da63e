"""The house's rules: what every C target of Lamella is compiled with, said once.

    lam_library(name, srcs, hdrs, deps)           a static archive; nothing in it is exported
    lam_shared(name, srcs, deps, version_script)  a shared object; the script names its exports
    lam_binary(name, srcs, deps)                  a program
    lam_test(name, srcs, deps)                    a program of TESTs; it gets //tests:check

Each takes `needs`, names in @lamella_config (mpi, cuda, torch, jax, ...): where one is missing, the
target is left out.
Sources that end in .cc or .cpp are compiled as C++17; a target holds one language.
"""

load("@lamella_config//:defs.bzl", "HAVE")
load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
_COMMON = _WARNINGS + ["-D_GNU_SOURCE", "-fvisibility=hidden", "-O2", "-g"]
_PUBLIC = ["//visibility:public"]
_LINK = ["-Wl,--as-needed", "-lm", "-lpthread", "-ldl"]

def _is_cpp(srcs):
    return any([s.endswith(".cc") or s.endswith(".cpp") for s in srcs])

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
            copts = _copts(srcs, copts),
            linkstatic = True,
            visibility = visibility,
            **kwargs
        )

def lam_binary(name, srcs, copts = [], linkopts = [], needs = [], visibility = _PUBLIC, **kwargs):
    if _is_here(needs):
        cc_binary(
            name = name,
            srcs = srcs,
            copts = _copts(srcs, copts),
            linkopts = _LINK + linkopts,
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
        ] + linkopts,
        linkshared = True,
        **kwargs
    )

def lam_test(name, srcs, deps = [], copts = [], linkopts = [], needs = [], **kwargs):
    """Tag "threads": also run under the thread sanitizer. Tag "nosan": under no sanitizer."""
    kwargs.setdefault("size", "small")
    if _is_here(needs):
        cc_test(
            name = name,
            srcs = srcs,
            deps = deps + ["//tests:check"],
            copts = _copts(srcs, copts),
            linkopts = _LINK + linkopts,
            linkstatic = True,
            **kwargs
        )
