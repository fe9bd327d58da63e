"""Groups whose ranks are processes, each with a JAX of its own."""

import os
import pickle
import secrets
import socket
import subprocess
from pathlib import Path

import decoder
import lamella
import lamella.jax as lj
import pytest

SEED = int(os.environ.get("LAMELLA_TEST_SEED", secrets.randbits(32)))
SCRIPT = Path(__file__).with_name("process.py")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(python, case, rank, size, port, folder):
    return subprocess.Popen(
        [python, "-B", str(SCRIPT), case, str(rank), str(size), str(port), str(folder)],
        env=dict(os.environ, XLA_FLAGS="", JAX_PLATFORMS="cpu", WHOLE=str(folder / "whole")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(python, case, size, folder):
    (folder / "id").write_bytes(lamella.Group.new_id())
    port = free_port()
    ranks = [start(python, case, rank, size, port, folder) for rank in range(size)]
    try:
        said = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for text in said:
        assert "well\n" in text, text


@pytest.mark.parametrize(
    "case, size",
    [
        ("tensor_parallel", 2),
        ("uneven", 2),
        ("pipeline", 2),
        ("mismatch", 2),
        ("distributed", 2),
    ],
)
def test_processes(warm_python, case, size, tmp_path):
    run(warm_python, case, size, tmp_path)


def test_a_decoder_trains_over_tp_and_pp_as_in_one_process(warm_python, tmp_path):
    print("LAMELLA_TEST_SEED=%d" % SEED)
    (tmp_path / "whole").write_bytes(pickle.dumps((SEED, decoder.train_whole(SEED))))
    run(warm_python, "decoder", 4, tmp_path)
