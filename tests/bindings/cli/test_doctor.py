"""What doctor says of the machine's parts: as the machine's own programs and libraries say it, or
as stand-ins do for what this machine may lack."""

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from bindings.cli import doctor as checkouts
from bindings.cli import venv
from lamella import doctor as wheels

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


@pytest.mark.parametrize("status, found", [(0, "2.27.3 (libnccl.so.2)"), (1, None)])
def test_nccl_is_asked_for_its_version(tmp_path, status, found):
    source = "int ncclGetVersion(int *v) { *v = 22703; return %d; }" % status
    assert doctor(**library(tmp_path, "libnccl.so.2", source))["NCCL"] == found


def test_cublaslt_is_asked_for_its_version(tmp_path):
    source = "unsigned long cublasLtGetVersion(void) { return 130105; }"
    found = doctor(**library(tmp_path, "libcublasLt.so.13", source))["cuBLASLt"]
    assert found == "13.1.5 (libcublasLt.so.13)"


def only(folder):
    """A PATH with the launcher's own needs beside what is in folder."""
    for name in ("sh", "readlink", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    return {"PATH": str(folder)}


def test_mpi_is_there_where_programs_are_built_and_started_with_it(tmp_path):
    env = only(tmp_path)
    assert doctor(**env)["MPI"] is None
    program(tmp_path, "mpirun", "echo 'mpirun (Stand-in) 9.1'; echo more")
    assert doctor(**env)["MPI"] is None
    program(tmp_path, "mpicc", "exit 1")
    assert doctor(**env)["MPI"] == "mpirun (Stand-in) 9.1"
    program(tmp_path, "mpirun", "exit 1")
    assert doctor(**env)["MPI"] is None


def interpreter(folder, name, version):
    """One with a torch of this version, or without it."""
    known = """case "$2" in *"version('torch')"*) echo %s; exit 0 ;; esac""" % version
    program(folder, name, "%s\nexit 1" % (known if version else ""))
    return str(folder / name)


@pytest.mark.parametrize(
    "own, given, paths, found",
    [
        ("1.2", "3.4", "5.6", "1.2 (%s/own)"),
        (None, "3.4", "5.6", "3.4 (%s/given)"),
        (None, None, "5.6", None),  # LAMELLA_PYTHON is asked alone
        (None, "", "5.6", "5.6 (%s/python3)"),
        (None, "", None, None),
    ],
)
def test_a_module_is_looked_for_in_the_environment_and_then_in_the_users_python(
    tmp_path, monkeypatch, own, given, paths, found
):
    environments = interpreter(tmp_path, "own", own)
    users = "" if given == "" else interpreter(tmp_path, "given", given)
    interpreter(tmp_path, "python3", paths)
    monkeypatch.setattr(venv, "python", lambda: environments)
    monkeypatch.setenv("LAMELLA_PYTHON", users)
    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path, os.environ["PATH"]))
    assert checkouts.find_module("torch") == (found and found % tmp_path)
    assert checkouts.find_module("jax") is None


def test_an_interpreter_is_asked_in_words_that_it_understands(monkeypatch):
    monkeypatch.setattr(venv, "python", lambda: sys.executable)
    found = checkouts.find_module("pytest")
    assert found == "%s (%s)" % (pytest.__version__, sys.executable)


NOTHING_INSTALLS = {"CPU", "GPU", "python3", "memory", "launcher"}  # it is there, or is not ours
TOLD = {
    "nvcc": "apt-get install cuda-toolkit-13-0",
    "CUDA driver": "apt-get install cuda-drivers",
    "cuBLASLt": "pip install 'nvidia-cublas==13.*'",
    "NCCL": "pip install 'nvidia-nccl-cu13'",
    "MPI": "./lamella setup bench",
}


@pytest.mark.parametrize("parts", [checkouts.PARTS, wheels.PARTS], ids=["clone", "wheel"])
def test_whatever_a_user_may_lack_it_says_what_to_do(parts, capsys):
    lacking = [part._replace(find=lambda: None) for part in parts]
    assert wheels.show(lacking, Namespace(json=False)) == 0
    listed, _, wanted = capsys.readouterr().out.partition("\n\nto install what is missing:\n")
    assert len(listed.splitlines()) == len(parts)
    width = max(len(part.name) for part in parts)
    told = {line[2 : 2 + width].rstrip(): line[4 + width :] for line in wanted.splitlines()}
    assert set(told) == {part.name for part in parts} - NOTHING_INSTALLS
    for name, words in TOLD.items():
        assert told.get(name, words).startswith(words)
    assert all(told.values())
