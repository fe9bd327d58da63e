"""The native adapter: it takes from torch what its stable list has for 2.10; plain loading."""

import re
import subprocess
import sys
from pathlib import Path

import torch

import lamella.torch  # noqa: F401
from lamella import library, rows

ROOT = Path(__file__).resolve().parents[3]
HEADERS = Path(torch.__file__).parent / "include/torch/csrc"
IN_CUDA, WITH_CUDA = 1, 9999  # as torch_abi.def and this reader of headers say it
# libstdc++'s operator delete, by which a torch without torch_delete_stable_ivalue frees optionals.
FROM_CPLUSPLUS = ["_ZdlPv"]
ADAPTER = library.path("lamella_torch.so")


def wanted():
    """name -> since, from the adapter's own list."""
    text = (ROOT / "bindings/torch/torch_abi.def").read_text()
    return {name: int(since) for since, name in re.findall(r"LAM_TORCH\((\d+), [^,]+, (\w+)", text)}


def declared():
    """name -> the first torch (2.10 = 210) whose stable headers have it; 0 = older than 2.10."""
    found = {}
    shims = HEADERS / "inductor/aoti_torch/c/shim.h", HEADERS / "stable/c/shim.h"
    for header in shims:
        since, depth, gates = 0, 0, []
        for line in header.read_text().splitlines():
            if re.match(r"\s*#\s*if", line):
                depth += 1
                gate = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)_0", line)
                if gate:
                    gates.append((depth, since))
                    since = int(gate.group(1)) * 100 + int(gate.group(2))
                elif "USE_CUDA" in line:
                    gates.append((depth, since))
                    since = WITH_CUDA
            elif re.match(r"\s*#\s*endif", line):
                if gates and gates[-1][0] == depth:
                    since = gates.pop()[1]
                depth -= 1
            for name in re.findall(r"\b((?:aoti_)?torch_\w+)\(", line):
                found.setdefault(name, since)
    return found


def nm(path, *options):
    lines = subprocess.run(["nm", "-D", *options, path], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in lines.stdout.splitlines()}


def test_torchs_headers_declare_every_function_as_stable_since_when_we_say():
    stable = declared()
    for name, since in wanted().items():
        assert name in stable, name
        if since == IN_CUDA:
            assert stable[name] == WITH_CUDA, name
        else:
            assert stable[name] <= (since or 210), (name, stable[name])


def test_the_header_reader_sees_newer_functions():
    stable = declared()
    assert stable["torch_from_blob"] == 211 and stable["torch_delete_stable_ivalue"] == 213
    assert stable["torch_library_impl"] == 210 and stable["aoti_torch_get_dim"] == 0
    assert stable["torch_set_current_cuda_stream"] == WITH_CUDA


def test_the_binary_looks_up_nothing_else():
    """What dlsym is given is a string: any that holds the start of a name of torch's, or of C++."""
    command = ["readelf", "--string-dump=.rodata", ADAPTER]
    strings = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"(?:aoti_|\btorch_|_Z)\w*", strings)
    assert set(names) == {*wanted(), *FROM_CPLUSPLUS}


def test_it_links_against_libc_and_lamella_only():
    undefined = nm(ADAPTER, "--undefined-only")
    torchs = nm(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"), "--defined-only")
    assert not undefined & torchs
    assert not [name for name in undefined if name.startswith("_Z")]  # no C++
    assert nm(ADAPTER, "--defined-only") == {"lamella_torch_ask_tf32", "lamella_torch_error"}
    needed = subprocess.run(["readelf", "-d", ADAPTER], capture_output=True, text=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", needed)) == {library.NAME, "libc.so.6"}


def python(code, program=sys.executable):
    return subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=120)


def test_plain_loading_gives_schemas_and_kernels(warm_python):
    done = python(
        "import torch\n"
        "torch.ops.load_library(%r)\n"
        "x, w = torch.randn(5, 7), torch.randn(3, 7)\n"
        "y, aux = torch.ops.lamella.linear(x, w)\n"
        "assert torch.allclose(y, x @ w.t(), atol=1e-5) and aux.numel() == 0\n"
        "names = torch._C._dispatch_get_all_op_names()\n"
        "print(len({n.removesuffix('.out') for n in names if n[:9] == 'lamella::'}))"
        % ADAPTER,
        warm_python,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(rows.table())


def test_kernels_are_there_for_cuda_too():
    """This torch has no CUDA; a build that has finds the same kernels."""
    for name in rows.table():
        for key in ("CPU", "CUDA", "Autograd"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key("lamella::" + name, key), key


def test_f32_products_on_cuda_follow_torchs_own_setting(warm_python):
    done = python(
        "import sys, torch\n"
        "sys.path[:0] = [%r]\n"
        "import lamella.torch\n"
        "from lamella.torch.register import tf32\n"
        "cuda, seen = torch.backends.cuda.matmul, [tf32()]\n"
        "for precision in ('high', 'medium', 'highest'):\n"
        "    torch.set_float32_matmul_precision(precision)\n"
        "    seen.append(tf32())\n"
        "for allow in (True, False):\n"
        "    cuda.allow_tf32 = allow\n"
        "    seen.append(tf32())\n"
        "for precision in ('tf32', 'ieee'):\n"
        "    cuda.fp32_precision = precision\n"
        "    seen.append(tf32())\n"
        "print(seen)" % str(library.PACKAGE.parent),
        warm_python,
    )
    assert done.stdout == "[0, 1, 1, 0, 1, 0, 1, 0]\n", done.stdout + done.stderr


def test_without_torch_it_loads_and_says_what_it_needs():
    done = python(
        "import ctypes\n"
        "l = ctypes.CDLL(%r)\n"
        "l.lamella_torch_error.restype = ctypes.c_char_p\n"
        "print(l.lamella_torch_error().decode())" % ADAPTER
    )
    assert done.stdout.strip() == "no libtorch_cpu.so is loaded: import torch first", done.stderr


def test_a_second_copy_says_that_it_was_loaded_twice(warm_python, tmp_path):
    import shutil

    copy = shutil.copy(ADAPTER, tmp_path)
    shutil.copy(library.path(library.NAME), tmp_path)
    done = python(
        "import ctypes, torch\n"
        "torch.ops.load_library(%r)\n"
        "l = ctypes.CDLL(%r)\n"
        "l.lamella_torch_error.restype = ctypes.c_char_p\n"
        "print(l.lamella_torch_error().decode())\n"
        "print(torch.ops.lamella.linear(torch.ones(1, 1), torch.ones(1, 1))[0].item())"
        % (ADAPTER, copy),
        warm_python,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded twice" in done.stdout and done.stdout.endswith("1.0\n")
