"""What doctor says of the machine's parts: as the machine's own programs and libraries say it, or
as stand-ins do for what this machine may lack."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def doctor(**env):
    """{part: what was found, or None}"""
    command = [str(ROOT / "lamella"), "doctor", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=dict(os.environ, **env)
    )
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["found"] for row in json.loads(done.stdout)}


def program(folder, name, script):
    path = folder / name
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return {"PATH": "%s:%s" % (folder, os.environ["PATH"])}


def library(folder, name, source):
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name)]
    subprocess.run(command, input=source, text=True, check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_the_compiler_is_named_as_it_names_itself(tmp_path):
    said = subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout
    assert doctor()["gcc"] == said.splitlines()[0]
    other = program(tmp_path, "gcc", "echo 'gcc (Stand-in) 99.1'; echo more")
    assert doctor(**other)["gcc"] == "gcc (Stand-in) 99.1"
    broken = program(tmp_path, "gcc", "echo 'gcc: no'; exit 1")
    assert doctor(**broken)["gcc"] is None


DNNL = """
typedef struct { int major, minor, patch; } version;
const version *dnnl_version(void) { static const version v = {3, 4, 5}; return &v; }
int dnnl_get_effective_cpu_isa(void) { return %s; }
"""


@pytest.mark.parametrize(
    "isa, name",
    [("0x1", "SSE4.1"), ("0x7", "AVX2"), ("0xE7", "AVX-512 bf16"), ("0xABCD", "0xabcd")],
)
def test_onednn_is_asked_for_its_instruction_set(tmp_path, isa, name):
    env = library(tmp_path, "libdnnl.so.3", DNNL % isa)
    assert doctor(**env)["oneDNN"] == "3.4.5 (libdnnl.so.3), instruction set %s" % name


@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="no AVX2 here")
def test_this_machines_onednn_tells_what_it_was_told_to_use():
    found = doctor(ONEDNN_MAX_CPU_ISA="AVX2")["oneDNN"]
    assert found.endswith(", instruction set AVX2")


def test_nvcc_is_named_by_its_release(tmp_path):
    told = "echo 'Cuda compilation tools, release 12.4, V12.4.131'"
    env = program(tmp_path, "nvcc", told)
    assert doctor(**env)["nvcc"] == "12.4 (%s)" % (tmp_path / "nvcc")


def test_the_cuda_device_is_named_where_it_was_built():
    rows = doctor()
    built = ROOT / "bazel-bin/abi/liblamella_cuda.so.0"
    assert rows["CUDA device"] == (str(built) if built.exists() else None)
    if rows["cuBLAS headers"]:
        assert (Path(rows["cuBLAS headers"]) / "cublasLt.h").exists()


DRIVER = """
int cuDriverGetVersion(int *version) { *version = 12040; return %d; }
int cuInit(unsigned flags) { return 100 + (int)flags; }
"""


@pytest.mark.parametrize("status, found", [(0, "for CUDA 12.4"), (100, None)])
def test_the_cuda_driver_is_asked_for_its_version(tmp_path, status, found):
    rows = doctor(**library(tmp_path, "libcuda.so.1", DRIVER % status))
    assert rows["CUDA driver"] == found
    assert rows["GPU"] is None  # the driver finds none


def test_the_hosts_adapters_are_named_where_they_were_built():
    rows = doctor()
    for name, file in (("torch ops", "lamella_torch.so"), ("jax ops", "liblamella_xla.so")):
        built = list(ROOT.glob("bazel-bin/bindings/*/" + file))
        assert rows[name] == (str(built[0]) if built else None)
