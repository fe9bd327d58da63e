"""One rank that loads a checkpoint under a limit of memory, which the kernel keeps.

    ./lamella run -n 4 python memory_rank.py FOLDER TP PP

One limit is on private writable memory (RLIMIT_DATA): what there is once all is imported and the
files are mapped, this rank's part, the largest tensor in it once more, and SLACK for Python's own
objects, which is less than such a tensor: who holds two besides exceeds that, and who copies one
may, by what malloc keeps of those before. First the whole checkpoint is read, as a program without
lamella.torch.load would: that must not fit. The other is on memory that is no file's, looked at
after every call: a loader that reads files and maps none exceeds that. Pages of the mapped files
that have nothing of this rank's pieces cannot be read at all: who does, dies.
"""

import ctypes
import json
import math
import mmap
import os
import resource
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bindings/python")]

import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import lamella.torch  # noqa: E402
from lamella.torch import checkpoint  # noqa: E402
from lamella.torch.modules import Split  # noqa: E402
from plain_model import FAMILY, Decoder  # noqa: E402

SLACK = 2 << 20
SIZES = dict(vocab=4096, width=512, heads=8, kv_heads=4, ffn=2048, layers=10)
PROT_NONE = 0
torch.set_num_threads(1)


def empty():
    with torch.device("meta"):
        return Decoder(**SIZES)


def status(name):
    """A size in /proc/self/status, in bytes."""
    line = next(x for x in open("/proc/self/status") if x.startswith(name + ":"))
    return int(line.split()[1]) << 10


def held(tensors):
    return [t.numel() * t.element_size() for t in tensors]


def read_whole(source):
    return {name: source.read(name, 0, 0, source.shape(name)[0]).clone() for name in source.names()}


def has_no_memory_for(source):
    """Asked of a child: what it reads until there is no more would stay as room for the load."""
    child = os.fork()
    if child == 0:
        try:
            read_whole(source)
        except (RuntimeError, MemoryError):
            os._exit(3)
        os._exit(0)
    return os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 3


def most_anonymous(load, *arguments):
    """What load(...) adds to this process's anonymous memory, at the most."""
    begin, most = status("RssAnon"), 0

    def look(frame, event, argument):
        nonlocal most
        if event in ("return", "c_return"):
            most = max(most, status("RssAnon"))

    sys.setprofile(look)
    try:
        found = load(*arguments)
    finally:
        sys.setprofile(None)
    return most - begin, found


def allow(data):
    """Bytes of private writable memory, until further notice."""
    resource.setrlimit(resource.RLIMIT_DATA, (data, resource.RLIM_INFINITY))


def pieces(model):
    """(name, first row, end) of each piece of an unsplit tensor that this rank holds; one of
    columns lies in all rows."""
    for root in checkpoint.roots(model):
        for path, module in root.named_modules():
            for name, parameter in module._parameters.items():
                if isinstance(module, Split) and parameter is not None:
                    for key, dim, begin, end in module.sources(name):
                        rows = (begin, end) if dim == 0 else (0, module.unsplit_shape(name)[0])
                        yield "%s.%s" % (path, key), *rows
                elif parameter is not None:
                    yield "%s.%s" % (path, name), 0, len(parameter)


def pages_of(file, wanted, shared):
    """Whether each page of a safetensors file has some of its header, or of a wanted piece; or the
    first byte of a tensor that has one, which torch looks at when it makes a view."""
    with open(file, "rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        here = json.loads(opened.read(start - 8))
    parts, found = [(0, start)], bytearray(-(-file.stat().st_size // mmap.PAGESIZE))
    for name, first, end in wanted:
        for name in {name, *shared.get(name, ())} & here.keys():
            begin = start + here[name]["data_offsets"][0]
            row = 4 * math.prod(here[name]["shape"][1:])
            parts += [(begin + first * row, begin + end * row), (begin, begin + 1)]
    for begin, end in parts:
        for page in range(begin // mmap.PAGESIZE, -(-end // mmap.PAGESIZE)):
            found[page] = 1
    return found


def forbid_others(files, model):
    """No page of the mapped files can be read that has none of this rank's pieces. Gives the number
    of those pages."""
    protect, count = ctypes.CDLL(None, use_errno=True).mprotect, 0
    wanted, shared = list(pieces(model)), model.lamella.shared
    pages = {str(file): pages_of(file, wanted, shared) for file in files}
    for line in open("/proc/self/maps").readlines():
        where, _, offset, _, _, *path = line.split()
        if path and path[0] in pages:
            assert int(offset, 16) == 0, line
            for page, is_wanted in enumerate(pages[path[0]]):
                if not is_wanted:
                    at = int(where.split("-")[0], 16) + page * mmap.PAGESIZE
                    assert protect(ctypes.c_void_p(at), mmap.PAGESIZE, PROT_NONE) == 0
                    count += 1
    return count


def dies_of_reading(source, names):
    child = os.fork()
    if child == 0:
        for name in names:
            source.read(name, 0, 0, source.shape(name)[0]).sum()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV


def load_bytes(model, files):
    """Right, but for the memory that it needs."""
    data = [Path(file).read_bytes() for file in files]
    state = {name: t for one in data for name, t in safetensors.torch.load(one).items()}
    return lamella.torch.load(model, state)


def main(folder, tp, pp):
    files = sorted(Path(folder).glob("*.safetensors"))
    mapped = sum(f.stat().st_size for f in files)
    group = lamella.torch.group(deadline_ms=60000)
    plan = lamella.torch.Plan(tp=int(tp), pp=int(pp), family=FAMILY)
    model = lamella.torch.parallelize(empty(), plan, group)
    assert all(p.is_meta for p in model.parameters())
    own, largest = sum(held(model.parameters())), max(held(model.parameters()))
    assert largest >= 2 * SLACK
    source = checkpoint.Files(folder)
    checkpoint.Files = lambda _: source  # whose mapping is already there
    allow(status("VmData") + own + largest + SLACK)
    if has_no_memory_for(source):
        print("whole: no memory", flush=True)
    assert forbid_others(files, model) * mmap.PAGESIZE > 0.4 * mapped
    allow(status("VmData") + own + largest + SLACK)
    most, unknown = most_anonymous(lamella.torch.load, model, folder)
    assert unknown == [] and most <= own + largest + SLACK, (most, own, largest)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert dies_of_reading(source, source.names())
    allow(resource.RLIM_INFINITY)
    most, _ = most_anonymous(load_bytes, model, files)
    assert most > own + largest + SLACK, most  # or the other would not tell
    print("split: ok, %d bytes held, largest %d, whole %d" % (own, largest, mapped), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
