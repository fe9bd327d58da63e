"""One rank that loads a checkpoint under a limit of memory, which the kernel keeps.

    ./lamella run -n 4 python memory_rank.py FOLDER TP PP

One limit is on private writable memory (RLIMIT_DATA): what there is once all is imported, the
mapped files (private mappings count by their length, though they take none), this rank's part,
the largest tensor, and SLACK for Python's own objects. First the whole checkpoint is read, as a
program without lamella.torch.load would: that must not fit. The other is on memory that is no
file's, looked at after every call: a loader that reads files and maps none exceeds that.
"""

import os
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bindings/python")]

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

import lamella.torch  # noqa: E402
from plain_model import FAMILY, Decoder  # noqa: E402

SLACK = 12 << 20
SIZES = dict(vocab=4096, width=512, heads=8, kv_heads=4, ffn=2048, layers=10)
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


def read_whole(files):
    opened = [safe_open(str(file), "pt") for file in files]
    return {name: file.get_tensor(name).clone() for file in opened for name in file.keys()}


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


def load_bytes(model, files):
    """Right, but for the memory that it needs."""
    data = [Path(file).read_bytes() for file in files]
    state = {name: t for one in data for name, t in safetensors.torch.load(one).items()}
    return lamella.torch.load(model, state)


def main(folder, tp, pp):
    files = sorted(Path(folder).glob("*.safetensors"))
    mapped, largest = sum(f.stat().st_size for f in files), max(held(empty().parameters()))
    group = lamella.torch.group(deadline_ms=60000)
    begin = status("VmData")
    plan = lamella.torch.Plan(tp=int(tp), pp=int(pp), family=FAMILY)
    model = lamella.torch.parallelize(empty(), plan, group)
    assert all(p.is_meta for p in model.parameters())
    own = sum(held(model.parameters()))
    limit = begin + mapped + own + largest + SLACK
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    try:
        read_whole(files)
    except (RuntimeError, MemoryError):
        print("whole: no memory", flush=True)
    most, unknown = most_anonymous(lamella.torch.load, model, folder)
    assert unknown == [] and most <= own + largest + SLACK, (most, own, largest)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    most, _ = most_anonymous(load_bytes, model, files)
    assert most > own + largest + SLACK, most  # or the other would not tell
    print("split: ok, %d bytes held, largest %d, whole %d" % (own, largest, mapped), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
