"""What stands in for an interpreter in other tests (warm.py) is one as far as they can tell."""

import json
import os
import select
import signal
import socket
import subprocess
import sys

import pytest
import warm

pytest.importorskip("torch", reason="torch is not installed: ./lamella setup")

WHERE = """import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), sys.path[0], os.environ["LAMELLA_X"]]))
"""


@pytest.mark.parametrize("given", [["-c", WHERE, "a", "b"], ["-B", "program.py", "a", "b"]])
def test_a_program_finds_what_an_interpreter_gives_it(warm_python, tmp_path, given):
    (tmp_path / "program.py").write_text(WHERE)
    place, told = dict(cwd=tmp_path, env=dict(os.environ, LAMELLA_X="x")), []
    for python in (sys.executable, warm_python):
        done = subprocess.run([python, *given], **place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert told[0] == told[1]


def test_it_ends_as_the_program_does(warm_python):
    for code, status in [
        ("raise SystemExit(7)", 7),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import sys; assert 'torch' in sys.modules and 'lamella' not in sys.modules", 0),
    ]:
        done = subprocess.run([warm_python, "-c", code], capture_output=True, text=True)
        assert done.returncode == status, (code, done.stderr)
        assert ("ZeroDivisionError" in done.stderr) == ("1 / 0" in code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_it_is_one_to_the_program(warm_python, number):
    code = "import os, threading; print(os.getpid()); threading.Event().wait()"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process = subprocess.Popen([warm_python, "-u", "-c", code], **pipes)
    program = os.pidfd_open(int(process.stdout.readline()))
    process.send_signal(number)
    assert process.wait(60) == -number
    assert select.select([program], [], [], 60)[0], "it goes on"
    os.close(program)
    process.stdout.close()


def test_what_is_drawn_by_chance_differs(warm_python):
    code = "import numpy; print(numpy.random.random())"
    told = [subprocess.check_output([warm_python, "-c", code]) for _ in range(2)]
    assert told[0] != told[1]


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A folder for servers of a test's own, which have no package to load."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nexec %s -S "$@"\n' % sys.executable)
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    return tmp_path


@pytest.mark.parametrize("length, said", [(99, b""), (99, b'[["-c"'), (2, b"}{"), (2**64 - 1, b"")])
def test_a_client_that_breaks_off_ends_no_other(bare, length, said):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with warm.program(bare) as python:
        other = subprocess.Popen([python, "-u", "-c", "print(1); print(input())"], **pipes)
        assert other.stdout.readline() == "1\n"
        end, stream = os.pipe()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(bare / "warm.socket"))
            socket.send_fds(client, [length.to_bytes(warm.LENGTH, "little")], [0, stream, 2])
            client.sendall(said)
        os.close(stream)
        assert select.select([end], [], [], 60)[0] and os.read(end, 1) == b"", "its streams stay"
        os.close(end)
        assert subprocess.run([python, "-c", ""], timeout=300).returncode == 0
        assert other.communicate("2", timeout=300) == ("2\n", None) and other.returncode == 0


def test_after_a_crash_there_is_another_server(bare):
    with warm.program(bare) as python:
        server = int(subprocess.check_output([python, "-c", "import os; print(os.getppid())"]))
        ended = os.pidfd_open(server)
        os.kill(server, signal.SIGKILL)
        assert select.select([ended], [], [], 60)[0]
        os.close(ended)
    with warm.program(bare) as python:
        assert subprocess.run([python, "-c", ""], timeout=300).returncode == 0


def test_a_user_that_comes_at_a_servers_end_keeps_it(tmp_path):
    path = tmp_path / "warm.socket"
    server = warm.Server(str(path))
    with socket.socket(socket.AF_UNIX) as user:
        user.connect(str(path))
        assert not server.ends() and path.exists()
    assert server.serve() is None and not path.exists()
    server.listener.close()
    server.ready.close()


@pytest.fixture
def heard(bare):
    """A client, started; the connection to it, whose other side is a server's; its request's length."""
    warm.write(bare / "warm-python", bare / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bare / "socket"))
        listener.listen()
        # More than fits into the connection: the client is still sending when its length is there.
        long = {"LAMELLA_X%d" % i: "x" * 100000 for i in range(8)}
        client = subprocess.Popen([bare / "warm-python", "-c", ""], env=dict(os.environ, **long))
        connection, _ = listener.accept()
    head, streams, _, _ = socket.recv_fds(connection, warm.LENGTH, 3)
    warm.close(streams)
    with connection:
        yield client, connection, int.from_bytes(head, "little")
    client.wait(60)


def test_a_signal_during_a_request_comes_after_it(heard):
    client, connection, n = heard
    client.send_signal(signal.SIGTERM)
    assert warm.read(connection, n)[0] == ["-c", ""]
    assert connection.recv(1) == bytes([signal.SIGTERM])


def test_a_signal_that_nobody_hears_changes_no_end(heard):
    client, connection, n = heard
    assert warm.read(connection, n)
    connection.shutdown(socket.SHUT_RD)
    client.send_signal(signal.SIGTERM)
    connection.send((7).to_bytes(warm.LENGTH, "little"))
    assert client.wait(60) == 7
