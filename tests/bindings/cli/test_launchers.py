"""Ranks started by other people's launchers: they meet, they sum, and two worlds never mix."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bindings.cli import bazel

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
SIZES = [1, 5000, 300000]  # as in launched.c

LAUNCHERS = {
    "torchrun": [
        str(Path(sys.executable).with_name("torchrun")),
        "--standalone",
        "--no-python",
        "--nproc-per-node",
    ],
    "Open MPI": ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n"],
    "MPICH": ["mpirun.mpich", "-n"],
}
LAUNCHER_VARIABLES = ("LAMELLA_", "TORCHELASTIC_", "OMPI_", "PMI", "SLURM_")
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    assert bazel.build(["//abi:liblamella.so.0"]) == 0
    library = ROOT / "bazel-bin" / "abi" / "liblamella.so.0"
    program = tmp_path_factory.mktemp("launched") / "launched"
    warnings = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    links = [str(library), "-Wl,-rpath,%s" % library.parent]
    source = str(HERE / "launched.c")
    subprocess.run(
        ["gcc", *warnings, "-I%s" % (ROOT / "abi"), source, *links, "-o", program], check=True
    )
    return str(program)


def needs(program):
    if not shutil.which(program):
        pytest.skip("%s is not here (./lamella setup test)" % Path(program).name)
    if program.endswith("torchrun") and not knows_localhost():
        pytest.skip("torchrun meets at localhost, which has no address here (/etc/hosts)")


def knows_localhost():
    try:
        return bool(socket.gethostbyname("localhost"))
    except OSError:
        return False


def clean_environment():
    """Without another launcher's variables, as these tests may themselves have been launched."""
    return {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}


def start(command):
    return subprocess.Popen(
        command,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process):
    """What a launcher printed, once it and its ranks ended well."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, out + err
    return out


def expected(ranks, value):
    """Rank r gives value * 2^r."""
    total = value * (2**ranks - 1)
    return sorted(
        "rank %d of %d: %d x %d" % (rank, ranks, size, total)
        for rank in range(ranks)
        for size in SIZES
    )


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_a_launcher_meet_and_sum(launched, launcher, ranks):
    command = LAUNCHERS[launcher]
    needs(command[0])
    out = output(start([*command, str(ranks), launched, "5"]))
    assert sorted(out.splitlines()) == expected(ranks, 5)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_worlds_at_once_stay_apart(launched, launcher, tmp_path):
    command = LAUNCHERS[launcher]
    needs(command[0])
    ready = pipe(tmp_path / "ready")
    os.mkfifo(tmp_path / "go")
    values = [1, 100]
    worlds = [start([*command, "2", launched, str(value), str(tmp_path)]) for value in values]
    try:
        wait_for(ready, 2 * len(worlds))
        opened = os.open(tmp_path / "go", os.O_RDWR)
        for value, world in zip(values, worlds):
            assert sorted(output(world).splitlines()) == expected(2, value)
        os.close(opened)
    finally:
        for world in worlds:
            world.terminate()  # what has ended is left alone
        os.close(ready)


def pipe(path):
    """Open for both, so that opening does not wait and no writer's end is the end."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR)


def wait_for(ready, ranks):
    while ranks > 0:
        assert select.select([ready], [], [], TIMEOUT_S)[0], "%d ranks did not come" % ranks
        ranks -= len(os.read(ready, ranks))


# The first start: rank 0 leaves a process behind that goes on looking for its rank 1, which failed.
FAILS_ONCE = """
if [ "$TORCHELASTIC_RESTART_COUNT" = 0 ]; then
  if [ "$RANK" = 0 ]; then
    setsid "$1" 1000 >"$2/stray.out" 2>&1 &
    echo $! >"$2/stray.pid"
    wait
  fi
  while [ ! -s "$2/stray.pid" ]; do :; done
  exit 1
fi
exec "$1" 7
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_restarted_world_does_not_meet_what_is_left_of_the_first(launched, tmp_path):
    torchrun = LAUNCHERS["torchrun"][0]
    needs(torchrun)
    # One port for both starts: only the count of restarts tells them apart.
    options = ["--master-port", free_port(), "--max-restarts", "1", "--monitor-interval", "0.1"]
    ranks = ["--no-python", "--nproc-per-node", "2", "sh", "-c", FAILS_ONCE, "sh"]
    process = start([torchrun, *options, *ranks, launched, str(tmp_path)])
    try:
        out = output(process)
    finally:
        os.kill(int((tmp_path / "stray.pid").read_text()), signal.SIGKILL)
    assert sorted(out.splitlines()) == expected(2, 7)
    assert (tmp_path / "stray.out").read_text() == ""  # nobody came, and it was still waiting
