"""Finds what this machine has, and makes it one repository, @lamella_config.

@lamella_config//:dlpack, :ffi, :dnnl, :mpi   libraries to depend on; what is missing has no target
@lamella_config//:dlpack1                     torch's copy of DLPack 1.x, as dlpack1/dlpack/dlpack.h
@lamella_config//:cuda, :cublas               headers alone: of the toolkit; of it or of NVIDIA's wheel
@lamella_config//:defs.bzl                    HAVE (a dict: name -> bool), HAVE_MPI, HAVE_CUDA, ...,
                                              paths: NVCC, MPICC, MPIRUN, PYTHON, CUDA (the
                                              toolkit's folder) ("" = none);
                                              GCC: whether that is the compiler

Nothing is downloaded. What is missing is named in one message, and the targets that need it are
left out (the `needs` attribute of the macros in lamella.bzl). Bazel looks again whenever its server
starts.
"""

_HEADERS = {
    # name: (a header that proves it, what to link; oneDNN is opened at run time and never linked)
    "dlpack": ("/usr/include/dlpack/dlpack.h", []),
    "ffi": ("ffi.h", ["-lffi"]),
    "dnnl": ("dnnl.h", []),
}

_CC_LIBRARY = """
cc_library(
    name = "{name}",
    {hdrs}
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

_FILEGROUP = """
filegroup(
    name = "{name}",
    srcs = {srcs},
    visibility = ["//visibility:public"],
)
"""

def _succeeds(ctx, command):
    return ctx.execute(command).return_code == 0

def _output(ctx, command):
    result = ctx.execute(command)
    return result.stdout.strip() if result.return_code == 0 else ""

def _program(ctx, names):
    """The first that is there, by name on PATH or by its whole path; "" for none."""
    for name in names:
        path = ctx.path(name) if name.startswith("/") else ctx.which(name)
        if path and path.exists:
            return str(path)
    return ""

def _has_header(ctx, cc, header):
    if header.startswith("/"):
        return ctx.path(header).exists
    return _succeeds(ctx, [cc, "-E", "-include", header, "-x", "c", "/dev/null", "-o", "/dev/null"])

def _mpi_library(ctx, mpicc):
    """The site's own flags: its headers become inputs, its libraries stay where they are."""
    flags = [f for f in _output(ctx, [mpicc, "-show"]).split(" ") if f]
    includes = [f[2:] for f in flags if f.startswith("-I")]
    if not includes:
        return ""
    ctx.symlink(includes[0], "mpi_include")
    links = [f for f in flags if f.startswith("-L") or f.startswith("-l") or f.startswith("-Wl,")]
    hdrs = 'hdrs = glob(["mpi_include/**"]), includes = ["mpi_include"],'
    return _CC_LIBRARY.format(name = "mpi", hdrs = hdrs, linkopts = repr(links))

def _python(ctx):
    """The checkout's own environment, which `./lamella setup` makes; else the user's python3."""
    own = ctx.path(str(ctx.path(Label("//:WORKSPACE")).dirname) + "/.venv/bin/python")
    if own.exists:
        return str(own)
    return ctx.os.environ.get("LAMELLA_PYTHON", "") or _program(ctx, ["python3"])

def _module(ctx, python, name):
    """The folder of a Python package; "" for none. It is not imported."""
    code = "import importlib.util as u; print(u.find_spec('%s').submodule_search_locations[0])"
    return _output(ctx, [python, "-c", code % name]) if python else ""

def _dlpack1(ctx, torch):
    """DLPack's own header, as torch carries it; "" where there is none."""
    header = ctx.path(torch + "/include/ATen/dlpack.h") if torch else None
    if not header or not header.exists:
        return ""
    ctx.symlink(header, "dlpack1/dlpack/dlpack.h")
    return _FILEGROUP.format(name = "dlpack1", srcs = ["dlpack1/dlpack/dlpack.h"])

_HEADERS_ONLY = """
cc_library(
    name = "{name}",
    hdrs = glob([
        "{name}_include/*.h",
        "{name}_include/*.hpp",
        "{name}_include/crt/*",
        "{name}_include/nv/**",
    ]),
    includes = ["{name}_include"],
    visibility = ["//visibility:public"],
)
"""

def _folder_with(ctx, header, folders):
    """The first folder that holds the header; "" where none does."""
    for folder in folders:
        if folder and ctx.path(folder + "/" + header).exists:
            return folder
    return ""

def _headers_only(ctx, name, folder):
    if not folder:
        return ""
    ctx.symlink(folder, name + "_include")
    return _HEADERS_ONLY.format(name = name)

def _toolkit_include(ctx, nvcc):
    return str(ctx.path(nvcc).realpath.dirname.dirname) + "/include" if nvcc else ""

def _wheel_includes(ctx, python):
    """The headers that NVIDIA's wheels have brought: nvidia/*/include."""
    nvidia = _module(ctx, python, "nvidia")
    folder = ctx.path(nvidia) if nvidia else None
    return [str(f) + "/include" for f in folder.readdir()] if folder and folder.exists else []

def _machine_impl(ctx):
    cc = _program(ctx, ["cc", "gcc", "clang"])
    nvcc = _program(ctx, ["nvcc", "/usr/local/cuda/bin/nvcc"])
    mpicc = _program(ctx, ["mpicc"])
    python = _python(ctx)
    torch = _module(ctx, python, "torch")

    build, have = "", {}
    for name, (header, linkopts) in _HEADERS.items():
        have[name] = bool(cc) and _has_header(ctx, cc, header)
        if have[name]:
            build += _CC_LIBRARY.format(name = name, hdrs = "", linkopts = repr(linkopts))
    mpi = _mpi_library(ctx, mpicc) if mpicc else ""
    have["mpi"] = mpi != ""
    have["cuda"] = nvcc != ""
    have["torch"] = torch != ""
    have["jax"] = _module(ctx, python, "jax") != ""
    dlpack1 = _dlpack1(ctx, torch)
    toolkit = _toolkit_include(ctx, nvcc)
    toolkit = _folder_with(ctx, "cuda_runtime_api.h", [toolkit, "/usr/local/cuda/include"])
    cublas_in = [ctx.os.environ.get("CUBLAS_INCLUDE", ""), toolkit] + _wheel_includes(ctx, python)
    cuda = _headers_only(ctx, "cuda", toolkit)
    cublas = _headers_only(ctx, "cublas", _folder_with(ctx, "cublasLt.h", cublas_in))
    have["cuda_headers"] = cuda != ""
    have["cublas_headers"] = cublas != ""
    have["dlpack1"] = dlpack1 != ""

    defs = ["HAVE = " + repr(have)]
    defs += ["HAVE_%s = %s" % (name.upper(), value) for name, value in have.items()]
    programs = {"NVCC": nvcc, "MPICC": mpicc, "MPIRUN": _program(ctx, ["mpirun"]), "PYTHON": python}
    programs["CUDA"] = toolkit[:-len("/include")]
    defs += ["%s = %s" % (name, repr(path)) for name, path in programs.items()]
    compiler = ctx.os.environ.get("CC", "gcc")
    defs += ["GCC = %s" % ("Free Software Foundation" in _output(ctx, [compiler, "--version"]))]
    ctx.file("defs.bzl", "\n".join(defs) + "\n")
    ctx.file("BUILD", 'load("@rules_cc//cc:defs.bzl", "cc_library")\n' + build + mpi + dlpack1 +
             cuda + cublas)

    missing = [name for name in have if not have[name]]
    if missing:
        print("not on this machine, and left out with what needs it: %s; see ./lamella doctor" %
              ", ".join(missing))

machine = repository_rule(
    implementation = _machine_impl,
    local = True,
    configure = True,
    environ = ["PATH", "CC", "CUBLAS_INCLUDE", "LAMELLA_PYTHON"],
)
