"""Groups in PyTorch programs: from torch.distributed, from torchrun, split; and their mistakes."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy
import pytest
import torch

import lamella.torch  # noqa: F401: the operators
from lamella import errors, group, library, operators

ROOT = Path(__file__).resolve().parents[3]
HEAD = """
import sys
sys.path.insert(0, %r)
import torch, torch.distributed as dist, lamella, lamella.torch
all_reduce = torch.ops.lamella.all_reduce

def total(g, x):
    return all_reduce(torch.tensor([float(x)]), group=g.handle).item()
""" % str(ROOT / "bindings/python")


@pytest.fixture
def program(tmp_path):
    def write(body):
        path = tmp_path / "program.py"
        path.write_text(HEAD + body)
        return str(path)

    return write


def finish(processes):
    """What each printed; all must end well."""
    texts = [process.communicate(timeout=120)[0] for process in processes]
    for process, text in zip(processes, texts):
        assert process.returncode == 0, texts
    return texts


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_an_initialised_torch_distributed_carries_the_id(program, tmp_path, warm_python):
    path = program(
        "rank = int(sys.argv[1])\n"
        "store = dist.FileStore(sys.argv[2], 3)\n"
        "dist.init_process_group('gloo', store=store, rank=rank, world_size=3)\n"
        "moved = dist.broadcast_object_list\n"
        "del dist.broadcast_object_list  # the store carries it\n"
        "g = lamella.torch.group()\n"
        "assert (g.rank, g.size) == (rank, 3)\n"
        "again = lamella.torch.group()\n"
        "assert again.handle != g.handle and total(again, rank) == 3\n"
        "assert total(g, rank + 1) == 6\n"
        "last_two = dist.new_group([1, 2])\n"
        "if rank:\n"
        "    sub = lamella.torch.group(last_two)\n"
        "    assert (sub.rank, sub.size) == (rank - 1, 2) and total(sub, rank) == 3\n"
        "dist.broadcast_object_list = moved\n"
        "del dist.distributed_c10d._get_process_group_store  # nor is the store there\n"
        "assert total(lamella.torch.group(), rank) == 3\n"
        "print('done')\n"
    )
    command = [warm_python, path]
    texts = finish([start([*command, str(r), str(tmp_path / "store")]) for r in range(3)])
    assert all("done" in text for text in texts)


@pytest.fixture(scope="module")
def over_nccl(warm_python):
    """What two ranks of nccl_ranks.py said, {claim: rest of its line}."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    script = str(Path(__file__).with_name("nccl_ranks.py"))
    texts = finish([start([warm_python, "-B", script, str(r), "2", port]) for r in range(2)])
    lines = [[line.partition(": ") for line in text.splitlines()] for text in texts]
    return [{claim: rest for claim, _, rest in each} for each in lines]


@pytest.mark.parametrize("claim", ["default", "asked", "adopted", "nothing to adopt"])
def test_a_group_of_a_process_group_over_nccl(over_nccl, claim):
    assert over_nccl[0][claim] == over_nccl[1][claim]  # the id where one was made, on both ranks


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_engine_nccl_says_on_all_ranks_what_is_missing(over_nccl):
    for said in over_nccl:
        assert said["without a GPU"].startswith("rank 0 cannot use NCCL: ")


def test_lamella_run_and_splitting(program, warm_python):
    path = program(
        "with lamella.torch.group() as g:\n"
        "    g.warmup()\n"
        "    half = g.split(g.rank % 2, -g.rank)\n"
        "    assert half.size == (2 if g.rank % 2 == 0 else 1)\n"
        "    assert total(half, g.rank) == (2 if g.rank % 2 == 0 else 1)\n"
        "    assert g.rank != 2 or half.rank == 0\n"
        "    assert (g.split(-1) is None) == True\n"
        "    half.close()\n"
        "    half.close()\n"
        "print('done')\n"
    )
    command = [str(ROOT / "lamella"), "run", "-n", "3", warm_python, path]
    [text] = finish([start(command)])
    assert text.count("done") == 3


def knows_localhost():
    try:
        return bool(socket.gethostbyname("localhost"))
    except OSError:
        return False


@pytest.mark.skipif(not knows_localhost(), reason="torchrun needs localhost to have an address")
def test_torchrun(program):
    path = program("g = lamella.torch.group()\nassert total(g, g.rank + 1) == 3\nprint('done')\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    [text] = finish([start([*torchrun, "--nproc-per-node", "2", path])])
    assert text.count("done") == 2


def test_mistakes_have_their_class_and_the_librarys_words(monkeypatch):
    with pytest.raises(errors.InvalidArgument, match="rank") as caught:
        group.Group.create(bytes(128), rank=2, size=2)
    assert isinstance(caught.value, ValueError) and caught.value.status == 3
    with pytest.raises(errors.NotFound, match="group 12345"):
        group.place(12345)
    with pytest.raises(errors.InvalidArgument):
        library.shard(10, 0, 2, unit=3)
    for name in [n for n in os.environ if n.startswith(("LAMELLA_", "RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)
    with pytest.raises(errors.Error, match="LAMELLA_"):
        group.Group.from_env()


def test_every_status_has_a_class():
    header = (ROOT / "abi/lamella.h").read_text()
    part = header.partition("typedef int32_t lam_status;")[2].partition("lam_last_error")[0]
    found = re.findall(r"^#define LAM_([A-Z_]+) (\d+|\([\d| <]+\))", part, re.M)
    assert len(found) == part.count("#define")
    numbers = {name: eval(text) for name, text in found}
    assert numbers.pop("OK") == 0
    assert numbers == {name: code for name, (code, _) in errors.STATUSES.items()}
    for status, kind in errors.CLASSES.items():
        assert type(errors.of_status(status, "x")) is kind
        assert issubclass(kind, errors.Error)
    assert type(errors.of_status(3 | 99 << 8, "x")) is errors.InvalidArgument
    assert type(errors.of_status(77, "x")) is errors.Error


# -- closed by another thread --

CALLS = {
    "torch": lambda g: torch.ops.lamella.all_reduce(torch.ones(3), group=g.handle),
    "host": lambda g: operators.run("all_reduce", [ONES], [ONES.copy()], group=g.handle),
    "warmup": lambda g: g.warmup(),
}
ONES = numpy.ones(3, "f")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_waits_for_a_peer_ends_with_its_group(name):
    """Ranks are threads; rank 1 does not call."""
    groups, raised = {}, []

    def open_rank(rank):
        groups[rank] = group.Group.create(id, rank, 2, 120000, 120000)  # would outlast the test

    def wait():
        open_rank(0)
        slept.append(groups[0]._info().sleeps)
        try:
            CALLS[name](groups[0])
        except errors.Error as error:
            raised.append(error)

    for _ in range(5):
        slept, id = [], group.Group.new_id()
        threads = [threading.Thread(target=wait), threading.Thread(target=open_rank, args=(1,))]
        for thread in threads:
            thread.start()
        threads[1].join()
        while threads[0].is_alive() and (not slept or groups[0]._info().sleeps == slept[0]):
            pass
        groups[0].close()
        threads[0].join()
        groups[1].close()
        error = raised.pop()
        assert error.status == 1, error
        assert "rank 0 of 2 destroyed its group while a call used it" in str(error)
