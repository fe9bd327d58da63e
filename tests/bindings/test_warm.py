"""What stands in for an interpreter in other tests (warm.py) is one as far as they can tell."""

import json
import os
import select
import signal
import subprocess
import sys

import pytest

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
