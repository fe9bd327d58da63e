"""A Python that has imported PyTorch and JAX already, for tests that start many: what is asked of
it is done by a fork of one process, which spends those seconds once for a whole run of pytest.

    python -B warm.py SOCKET      serves, until nobody is connected any more
    warm-python [-B] [-u] FILE ... | -c CODE ... | -m MODULE ...

The second is what `program` writes: it stands where an interpreter would. It hands its arguments,
environment, folder and streams over, passes signals on, and ends as the fork does; where it is
killed, so is the fork.
Invariant: the process that forks has one thread, has run no backward pass and knows nothing of
Lamella, which each fork imports for itself. A fork computes on the CPU, on one thread. What a
client does, or leaves undone, ends no other's fork. Leaves programs that must be loaded afresh to the
real interpreter: with LD_PRELOAD, other packages, a limit of memory, or other variables than the
server's that are read at import or before (JAX_*, TORCH_*, PYTHON* but PYTHONPATH).
"""

import contextlib
import fcntl
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LENGTH = 8  # bytes in front of a request, which say how long it is
# What the server does not take over from whoever starts it: forks have their own.
OWN = ("PYTHONPATH", "XLA_FLAGS")
HERE = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
PROGRAM = """#!%s -IBS
import sys
sys.path.insert(0, %r)
import warm
warm.hand_over(%r)
"""


# -- the side of the tests --


@contextlib.contextmanager
def program(folder):
    """The path of warm-python, which is there as long as the block. All that give the same folder
    share one server."""
    folder, users = Path(folder), socket.socket(socket.AF_UNIX)
    with locked(folder):
        try:
            users.connect(str(folder / "warm.socket"))
        except OSError:
            write(folder / "warm-python", folder / "warm.socket")
            start(folder)
            users.connect(str(folder / "warm.socket"))
    with users:
        yield str(folder / "warm-python")


@contextlib.contextmanager
def locked(folder):
    """For users that come, and a server that ends."""
    with open(folder / "warm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(path, where):
    path.write_text(PROGRAM % (sys.executable, str(Path(__file__).parent), str(where)))
    path.chmod(0o700)


def start(folder):
    """A server, ready, in the place of one that was killed."""
    (folder / "warm.socket").unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if name not in OWN}
    with open(folder / "warm.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-B", __file__, str(folder / "warm.socket")],
            env={**env, **HERE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert server.stdout.read() == b"ready\n", (folder / "warm.log").read_text()
    server.stdout.close()


# -- warm-python --


def hand_over(path):
    """Ends this process as what was asked for ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # their bytes follow the request
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)

    def pass_on(number, frame):
        with contextlib.suppress(OSError):  # what was asked for has ended
            server.send(bytes([number]))

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(asked).to_bytes(LENGTH, "little")], [0, 1, 2])
    server.sendall(asked)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ended = server.recv(LENGTH)
    if not ended:
        sys.exit("warm-python: its server has ended")
    code = int.from_bytes(ended, "little", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# -- the server --


def load_torch():
    """With what a program that compiles loads bit by bit, and the patterns that Inductor makes."""
    import torch
    import torch._dynamo.testing
    import torch.distributed.run  # noqa: F401

    with contextlib.suppress(ImportError):
        from tqdm import tqdm
        from transformers import LlamaForCausalLM  # noqa: F401

        tqdm.monitor_interval = 0  # which would start a thread
    # A gradient would start autograd's threads for GPUs, where torch was built for them.
    x = torch.ones(3, requires_grad=not torch.version.cuda)
    torch.compile(lambda x: (x * 2).relu())(x)
    torch._dynamo.reset()


def load_jax():
    """Without its devices, which have threads."""
    import jax.numpy  # noqa: F401

    warnings.filterwarnings("ignore", r"os\.fork\(\) was called")


class Server:
    """A connection without a fork is a user's, or that of a program that has not asked yet."""

    def __init__(self, path):
        self.path, self.forks, self.connections = path, {}, set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.ready = selectors.DefaultSelector()
        self.ready.register(self.listener, selectors.EVENT_READ, self.accept)

    def serve(self):
        """What a fork is to run, in the fork; None in the server, at its end."""
        while True:
            key, _ = self.ready.select()[0]  # what it leads to may end others of them
            asked = key.data(key.fileobj)
            if asked:
                return asked
            if not self.connections and self.ends():
                return None

    def ends(self):
        """Nobody can come any more, unless somebody just did."""
        with contextlib.suppress(FileNotFoundError), locked(Path(self.path).parent):
            self.accept(self.listener)
            if not self.connections:
                os.unlink(self.path)
        return not self.connections

    def accept(self, listener):
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            self.connections.add(connection)
            self.ready.register(connection, selectors.EVENT_READ, self.hear)

    def hear(self, connection):
        """A request, a signal to pass on, or the other side's end."""
        if connection in self.forks:
            numbers = connection.recv(LENGTH)
            for number in numbers or [signal.SIGKILL]:
                os.kill(self.forks[connection], number)
            if not numbers:
                self.ready.unregister(connection)
            return None
        head, streams, _, _ = socket.recv_fds(connection, LENGTH, 3)
        asked = read(connection, int.from_bytes(head, "little"))
        if asked:
            return self.fork(connection, asked, streams)
        close(streams)
        self.forget(connection)
        return None

    def fork(self, connection, asked, streams):
        child = os.fork()
        if child == 0:
            for key in self.ready.get_map().values():
                if isinstance(key.fileobj, int):
                    os.close(key.fileobj)
            for one in (self.ready, self.listener, *self.connections):
                one.close()  # not by its number, which it would close once more at the end
            return [*asked, streams]
        close(streams)
        self.forks[connection] = child
        end = os.pidfd_open(child)
        self.ready.register(end, selectors.EVENT_READ, lambda end: self.note(end, connection))

    def note(self, end, connection):
        self.ready.unregister(end)
        os.close(end)
        _, status = os.waitpid(self.forks.pop(connection), 0)
        with contextlib.suppress(OSError):
            code = os.waitstatus_to_exitcode(status)
            connection.send(code.to_bytes(LENGTH, "little", signed=True))
        self.forget(connection)

    def forget(self, connection):
        with contextlib.suppress(KeyError):
            self.ready.unregister(connection)
        self.connections.remove(connection)
        connection.close()


def read(connection, n):
    """A request of n bytes, and no byte more: signals follow. None of a client that breaks off."""
    with contextlib.suppress(OSError, ValueError, OverflowError, MemoryError):
        return json.loads(connection.recv(n, socket.MSG_WAITALL))


def close(streams):
    for stream in streams:
        os.close(stream)


# -- a fork --


def become(arguments, environment, folder, streams):
    """This process is as a new interpreter with these arguments would be; gives what it runs."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no fork outlives the server
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # by chance, as where it is loaded afresh
    unbuffered = False
    while arguments[0] in ("-B", "-u"):
        unbuffered = arguments.pop(0) == "-u" or unbuffered
    sys.stdin = open(0, closefd=False)
    out = open(1, "wb", 0 if unbuffered else -1, closefd=False)
    sys.stdout = io.TextIOWrapper(out, line_buffering=os.isatty(1), write_through=unbuffered)
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)
    sys.path[:1] = [p for p in environment.get("PYTHONPATH", "").split(":") if p]
    return arguments


def run(arguments):
    """Ends the interpreter as its own end would: in this thread, with nothing around it."""
    import runpy
    import types

    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    if kind == "-c":
        path, source, rest = "<string>", rest[0], ["-c", *rest[1:]]
        sys.path.insert(0, "")
    else:
        path, source, rest = kind, Path(kind).read_text(), arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        main.__file__ = path
    sys.argv, sys.modules["__main__"] = rest, main
    exec(compile(source, path, "exec"), vars(main))


def main(path):
    for load in (load_torch, load_jax):
        with contextlib.suppress(ImportError):
            load()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    import gc

    gc.freeze()  # what is there stays shared with the forks
    server = Server(path)
    os.write(1, b"ready\n")
    os.dup2(2, 1)  # whoever started it waits for the pipe's end
    asked = server.serve()
    if asked:
        run(become(*asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
