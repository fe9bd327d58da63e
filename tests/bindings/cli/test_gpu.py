"""pack-gpu's folder, and test --gpu in it: what it says without a GPU, and what it does with one, for
which the stand-in for CUDA is put beside the library. What passes there is emulated."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bindings.cli import bazel, gpu, headers, pack_gpu, projection
from bindings.cli.common import ROOT, Problem

STANDIN = "//tests/gpu:liblamella_cuda_emulated.so.0"
# They call CUDA themselves, and only the library's is stood in for; or take their time; NCCL's stand-in knows
# no processes. All but that one run over the stand-in as programs of //tests/gpu.
NEED_A_CARD = ("demo_test", "graph_test", "replay_test", "times_test", "loss_test", "mixed_test",
                "mixed_processes_test", "nccl_test")

pytestmark = pytest.mark.skipif(not headers.all_there(), reason="no nvcc here, or no headers of cuBLAS")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder, moved away from where it was made."""
    made = tmp_path_factory.mktemp("made") / "gpu"
    done = subprocess.run([ROOT / "lamella", "pack-gpu", "--out", made], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    made.rename(moved)
    return moved


def command(folder, *arguments, **more):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LAMELLA_TEST_SEED")}
    return subprocess.run([folder / "lamella", *arguments], capture_output=True, text=True, cwd="/",
                          env=dict(env, PATH="/usr/bin:/bin", **more), timeout=500)


def test_the_folder_is_whole_and_small(packed):
    names = {str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file()}
    library = "bindings/python/lamella/lib/"
    assert {"lamella", "packed.json", "bin/probe", "bin/lamella_demo", "bin/tests/demo_test", "bin/tests/ops_test", "tests/gpu/gpu_torch.py",
            "tests/gpu/gpu_jax.py", "tests/gpu/ranks.py", "tests/gpu/ranks_torch.py", "tests/gpu/ranks_jax.py",
            "bindings/python/lamella/torch/__init__.py",
            library + "liblamella.so.0", library + "liblamella_cuda.so.0",
            library + "lamella_torch.so", library + "liblamella_xla.so"} <= names
    assert sum((packed / name).stat().st_size for name in names) <= pack_gpu.MOST_BYTES
    assert json.loads((packed / "packed.json").read_text())["commit"]


@pytest.mark.parametrize("what", ["test", "bench"])
def test_without_a_gpu_one_line_says_so(packed, what):
    done = command(packed, what, "--gpu")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("lamella: no GPU here that Lamella can use: cuda: ")
    assert done.stderr.count("\n") == 1


def test_the_demo_without_a_gpu_says_so_in_one_line(packed):
    done = command(packed, "demo", "--device", "cuda")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("lamella: --device cuda: no GPU here: ")
    assert done.stderr.count("\n") == 1
    program = [packed / "bin/lamella_demo", "--device", "cuda", "--text", packed / "LICENSE", "--check"]
    library = {"LD_LIBRARY_PATH": str(packed / "bindings/python/lamella/lib")}
    done = subprocess.run(program, capture_output=True, text=True, env=library)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("lamella demo: --device cuda: no GPU can be used: ")


def test_without_the_folder_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    with pytest.raises(Problem, match="run ./lamella pack-gpu") as said:
        gpu.home()
    assert said.value.status == 2


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "precious").touch()
    done = subprocess.run([ROOT / "lamella", "pack-gpu", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "was not made by this command" in done.stderr
    assert (tmp_path / "precious").exists()


@pytest.fixture(scope="module")
def emulated(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated") / "gpu"
    shutil.copytree(packed, folder)
    assert bazel.build([STANDIN]) == 0
    built = Path(ROOT, "bazel-bin", STANDIN.lstrip("/").replace(":", "/"))
    shutil.copyfile(built, folder / "bindings/python/lamella/lib/liblamella_cuda.so.0")
    for name in NEED_A_CARD:
        (folder / "bin/tests" / name).unlink()
    return folder


def test_with_a_card_everything_runs_is_counted_and_kept(emulated, tmp_path):
    done = command(emulated, "test", "--gpu", "--json", tmp_path / "test.json",
                   LAMELLA_TEST_RANKS="1", LAMELLA_TEST_SEED="1")
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert " passed, 0 failed" in last and int(last.split()[0]) > 30
    assert "skip memcheck: there is no compute-sanitizer here" in done.stdout
    kept = json.loads((emulated / "results/test.json").read_text())
    assert kept == json.loads((tmp_path / "test.json").read_text())
    assert "no GPU" in kept["machine"]["card"] and "nothing of it runs on a GPU" in done.stderr
    parts = {part["name"]: part for part in kept["parts"]}
    assert parts["ops_test"]["passed"] > 30 and not parts["ops_test"]["failed"]


def test_a_program_that_fails_is_counted_and_shown(emulated):
    program = emulated / "bin/tests/broken_test"
    program.write_text("#!/bin/sh\necho \"FAIL area.claim (seed $LAMELLA_TEST_SEED)\"; exit 1\n")
    program.chmod(0o755)
    done = command(emulated, "test", "--gpu", "area.claim")
    one = command(emulated, "test", "--gpu", "area.claim", LAMELLA_TEST_SEED="7")
    program.unlink()
    assert done.returncode == one.returncode == 1
    assert "FAIL area.claim" in done.stdout and done.stdout.splitlines()[-1] == "0 passed, 4 failed"
    assert "(seed 7)" in one.stdout and one.stdout.splitlines()[-1] == "0 passed, 1 failed"


MACHINE = {"card": "CUDA 13.0, cuBLASLt 13.1.1, NVIDIA H0, sm_90", "commit": "abc", "date": "today"}


def results(tmp_path, **documents):
    for name, document in documents.items():
        (tmp_path / name).write_text(json.dumps(document))
    out = tmp_path / "RESULTS.md"
    command = [ROOT / "lamella", "gpu-results", "--out", out, *(tmp_path / name for name in documents)]
    done = subprocess.run(command, capture_output=True, text=True)
    return out.read_text() if done.returncode == 0 else done.stderr


def part(name, passed, failed=0, skipped=()):
    return {"name": name, "passed": passed, "failed": failed, "skipped": list(skipped), "seconds": 1}


def test_results_tell_what_ran_from_what_did_not(tmp_path):
    row = dict(name="gemm", figure=7.0, unit="us", spread=0.1, peer="torch", peer_figure=8.0, ratio=0.875,
               goal="<= 1.00", met=True, note="")
    few = ["skip test_%d: not run: this machine has 1 GPU" % n for n in (2, 3)]
    text = results(tmp_path, test=dict(machine=MACHINE, parts=[part("torch", 9, 1), part("jax", 3, skipped=few)]),
                   bench=dict(machine=MACHINE, rows=[row], failed=[]))
    assert "NVIDIA H0" in text and "| ran: 9 passed, 1 failed |" in text and "| gemm | 7 us |" in text
    assert "| ran: 3 passed, 0 failed, 2 skipped (not run: this machine has 1 GPU) |" in text
    assert "| the same, memcheck | compiled only |" in text


def test_times_of_shares_make_a_projection(tmp_path):
    layer = projection.LAYERS[0]
    rows = [dict(name=projection.row_name(layer, p, 1), figure=1000.0 / p, unit="us", spread=0.1) for p in (1, 2)]
    text = results(tmp_path, bench=dict(machine=MACHINE, rows=rows, failed=[]))
    assert "## Several GPUs, projected" in text and "A projection: no two GPUs were timed." in text
    assert "| linear 8192x8192x8192 | 2 | NVLink 4 | 500 us | 597 us | 1097 us |" in text


def test_what_a_stand_in_answered_did_not_run_on_a_gpu(tmp_path):
    machine = dict(MACHINE, card="CUDA 13.0, stand-in for sm_90 (no GPU), sm_90")
    text = results(tmp_path, test=dict(machine=machine, parts=[part("ops_test", 40)]))
    assert "Nothing has run on a GPU yet." in text and "ran:" not in text


def test_what_was_not_kept_by_us_is_refused(tmp_path):
    assert "is not what was kept" in results(tmp_path, test=[1])


def test_the_results_in_the_tree_are_the_commands_own(tmp_path):
    """Until something has run on a GPU; from then on the files are not in the tree."""
    text = (ROOT / "tests/gpu/RESULTS.md").read_text()
    if "Nothing has run on a GPU yet." not in text:
        pytest.skip("made from files of a machine with a GPU")
    assert results(tmp_path, test=dict(machine=dict(MACHINE, card="stand-in"), parts=[])) == text
