"""The launcher as a user meets it: help, mistakes, and ranks that end well, badly or not at all."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAMELLA = str(ROOT / "lamella")
COMMANDS = ["setup", "build", "demo", "schedule", "test", "bench", "doctor", "wheel", "run"]


def lamella(*arguments, env=None, cwd=None):
    return subprocess.run(
        [LAMELLA, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ, **(env or {})),
        cwd=cwd,
    )


def run_shell(ranks, script):
    return lamella("run", "-n", str(ranks), "sh", "-c", script)


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_help_names_every_command(arguments, tmp_path):
    done = lamella(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    for command in COMMANDS:
        assert "\n    %s " % command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    for arguments in ([command, "--help"], ["help", command]):
        done = lamella(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: lamella %s" % command)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["help", "nosuch"], "invalid choice: 'nosuch'"),
        (["doctor", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["run", "true"], "required: -n"),
        (["run", "-n", "2"], "required: PROGRAM"),
        (["run", "-n", "0", "true"], "'0' is not a number of ranks"),
        (["run", "-n", "two", "true"], "'two' is not a number of ranks"),
        (["setup", "nosuch"], "invalid choice: 'nosuch'"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_the_reason(arguments, reason):
    done = lamella(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_setup_where_nothing_is_missing_is_quick():
    lamella("setup")
    began = time.monotonic()
    done = lamella("setup")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "lamella: everything is there\n"
    assert (
        time.monotonic() - began < 5
    )  # a call of apt-get takes longer on a busy machine; normally 0.1 s


def tools(folder, **scripts):
    """A PATH that holds the launcher's own needs and these shell scripts, and nothing else."""
    for name in ["sh", "env", "readlink", "dirname", "id", "tail", "mktemp", "rm", "touch", "cat"]:
        (folder / name).symlink_to(shutil.which(name))
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)
    return {"PATH": str(folder)}


NOTHING_INSTALLED = "exit 0"


def test_setup_without_apt_lists_what_to_install(tmp_path):
    done = lamella("setup", "build", env=tools(tmp_path))
    assert done.returncode == 1
    assert "there is no apt-get here" in done.stderr and "libdnnl-dev (oneDNN" in done.stderr


def test_setup_without_a_network_says_so(tmp_path):
    apt = 'echo "E: Failed to fetch http://x/y.deb  Temporary failure resolving"; exit 100'
    sudo = 'exec "$@"'
    done = lamella(
        "setup", "build", env=tools(tmp_path, dpkg_query=NOTHING_INSTALLED, apt_get=apt, sudo=sudo)
    )
    assert done.returncode == 1
    assert "is there a network?" in done.stderr
    assert "Traceback" not in done.stderr


def test_setup_reads_the_package_lists_again_where_they_are_stale(tmp_path):
    apt = (
        'for word; do last=$word; done\n'
        'if [ "$last" = update ]; then touch %(dir)s/updated; exit 0; fi\n'
        'if [ ! -e %(dir)s/updated ]; then echo "E: Unable to locate package gcc"; exit 100; fi\n'
        'echo "Setting up libdnnl-dev:amd64 (2.6.3-1) ..."'
    ) % {"dir": tmp_path}
    done = lamella(
        "setup",
        "build",
        env=tools(tmp_path, dpkg_query=NOTHING_INSTALLED, apt_get=apt, sudo='exec "$@"'),
    )
    assert done.returncode == 0, done.stderr
    assert "libdnnl-dev        oneDNN, matrix products\n" in done.stderr


def test_setup_gives_apts_own_reason_for_other_failures(tmp_path):
    apt = 'echo "E: Unmet dependencies."; exit 100'
    done = lamella(
        "setup",
        "build",
        env=tools(tmp_path, dpkg_query=NOTHING_INSTALLED, apt_get=apt, sudo='exec "$@"'),
    )
    assert done.returncode == 1
    assert "apt-get failed: E: Unmet dependencies." in done.stderr


def test_setup_without_root_gives_the_command_for_an_administrator():
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to other users
        folder = Path(scratch)
        folder.chmod(0o755)
        shutil.copy(LAMELLA, folder)
        for part in ("cli", "python"):
            shutil.copytree(ROOT / "bindings" / part, folder / "bindings" / part)
        (folder / "bin").mkdir()
        env = tools(folder / "bin", dpkg_query=NOTHING_INSTALLED, apt_get="exit 100")
        other = (
            [shutil.which("setpriv"), "--reuid=65534", "--clear-groups"]
            if os.geteuid() == 0
            else []
        )
        done = subprocess.run(
            [*other, str(folder / "lamella"), "setup", "build"],
            capture_output=True,
            text=True,
            env=env,
        )
    assert done.returncode == 1
    assert (
        "ask an administrator for:\n  apt-get install -y --no-install-recommends gcc "
        in done.stderr
    )


def test_doctor_says_the_same_as_text_and_as_json():
    rows = json.loads(lamella("doctor", "--json").stdout)
    text = lamella("doctor").stdout
    assert {"gcc", "oneDNN", "MPI", "NCCL", "torch", "jax"} <= {row["name"] for row in rows}
    for row in rows:
        assert (row["found"] or "not found (%s)" % row["used_for"]) in text
        if not row["found"] and row["install"]:
            assert row["install"] in text.split("to install what is missing:")[1]


def test_run_gives_each_rank_its_place_in_one_world():
    done = run_shell(3, 'echo "$LAMELLA_RANK of $LAMELLA_SIZE id $LAMELLA_ID"')
    assert done.returncode == 0 and done.stderr == ""
    lines = sorted(done.stdout.splitlines())
    ids = {line.split(" id ")[1] for line in lines}
    assert [line.split(" id ")[0] for line in lines] == [
        "[%d] %d of 3" % (rank, rank) for rank in range(3)
    ]
    assert len(ids) == 1
    assert len(bytes.fromhex(ids.pop())) == 32


def test_run_makes_a_new_id_each_time():
    first, second = (run_shell(1, 'echo "$LAMELLA_ID"').stdout for _ in range(2))
    assert first != second


def test_run_keeps_lines_whole_and_streams_apart():
    done = run_shell(
        4, 'for i in 1 2 3 4 5 6 7 8; do echo line $i; done; echo oops >&2; printf rest'
    )
    expected = ["line %d" % i for i in range(1, 9)] + ["rest"]
    for rank in range(4):
        prefix = "[%d] " % rank
        assert [
            line[4:] for line in done.stdout.splitlines() if line.startswith(prefix)
        ] == expected
    assert sorted(done.stderr.splitlines()) == ["[%d] oops" % rank for rank in range(4)]


def test_run_gives_the_status_of_the_rank_that_failed():
    done = run_shell(3, 'if [ $LAMELLA_RANK = 1 ]; then exit 7; fi')
    assert done.returncode == 7
    assert done.stderr.startswith("lamella: rank 1 exited with status 7")


def test_run_stops_the_others_when_one_is_killed(tmp_path):
    began = time.monotonic()
    done = run_shell(
        3,
        'cd %s; echo $$ > $LAMELLA_RANK; if [ $LAMELLA_RANK = 1 ]; then '
        'until [ -s 0 ] && [ -s 2 ]; do :; done; kill -9 $$; fi; sleep 50' % tmp_path,
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "lamella: rank 1 was killed by SIGKILL; stopping the other 2\n"
    assert 1.5 < time.monotonic() - began < 20
    for rank in range(3):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(rank)).read_text()), 0)


def test_run_lets_the_others_finish_within_the_grace(tmp_path):
    first = tmp_path / "pid"  # of rank 0: there until the launcher has noticed its end
    done = run_shell(
        2,
        'if [ $LAMELLA_RANK = 0 ]; then echo $$ > %s; exit 3; fi; until [ -s %s ]; do :; done; '
        'while kill -0 $(cat %s) 2>&-; do :; done; echo still here' % (first, first, first),
    )
    assert done.returncode == 3
    assert "[1] still here" in done.stdout


def test_run_passes_an_interrupt_on_and_ends():
    process = subprocess.Popen(
        [
            LAMELLA,
            "run",
            "-n",
            "2",
            "sh",
            "-c",
            'trap "echo heard; exit 0" INT; echo up; sleep 50 & wait',
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [process.stdout.readline()[4:] for _ in range(2)] == ["up\n", "up\n"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert sorted(out.splitlines()) == ["[0] heard", "[1] heard"]
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize(
    "program, status, reason",
    [
        ("/nosuch/program", 127, "cannot be started: No such file or directory"),
        ("/etc/passwd", 126, "cannot be started: Permission denied"),
    ],
)
def test_run_says_why_a_program_cannot_be_started(program, status, reason):
    done = lamella("run", "-n", "2", program)
    assert done.returncode == status
    assert done.stderr == "lamella: %s %s\n" % (program, reason)
