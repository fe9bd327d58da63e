"""Products by the oneDNN that the wheel carries, and by the machine's own, in turn.

Makes the wheel of this checkout and starts two processes: one has the package of the unpacked
wheel, the other that of the checkout; each multiplies when it is asked, on one thread, whose CPU
time is taken: what else the machine does counts little. The files that they have mapped tell whose
oneDNN each used.

    wheel_onednn.py [rounds]
"""

import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from figures import show

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve()
SIZES = {"m512": (512, 4096, 4096), "m64": (64, 4096, 4096)}  # rows, in, out
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def multiply():
    """In a process of its own: a line asks for one product, a line answers with its us."""
    import torch

    import lamella.torch

    products = {}
    for size, (m, k, n) in SIZES.items():
        for name, dtype in DTYPES.items():
            x, w = (torch.randn(rows, k, dtype=getattr(torch, dtype)) for rows in (m, n))
            products["%s_%s" % (name, size)] = lambda x=x, w=w: lamella.torch.ops.linear(x, w)
    with torch.inference_mode():
        for product in products.values():
            product()
        maps = open("/proc/self/maps").read().split()
        print(next(path for path in maps if "libdnnl.so" in path), flush=True)
        for line in sys.stdin:
            product = products[line.strip()]
            product()  # after the other side's turn
            begin = time.thread_time_ns()
            product()
            print((time.thread_time_ns() - begin) / 1e3, flush=True)


class Worker:
    def __init__(self, packages):
        settings = ["PYTHONPATH=%s" % packages, "OMP_NUM_THREADS=1"]
        self.process = subprocess.Popen(
            ["env", *settings, sys.executable, "-B", HERE, "multiply"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.onednn = self.process.stdout.readline().strip()

    def ask(self, product):
        print(product, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def unpack(folder):
    """The wheel, as an installation has it."""
    sys.path.insert(0, str(ROOT))
    from bindings.wheel import backend

    wheel = backend.build_wheel(folder)
    with zipfile.ZipFile(Path(folder) / wheel) as archive:
        archive.extractall(folder)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        unpack(folder)
        workers = {"wheel": Worker(folder), "debian": Worker(ROOT / "bindings/python")}
        for side, worker in workers.items():
            print("#", side, worker.onednn)
            assert worker.onednn.startswith(folder) == (side == "wheel"), worker.onednn
        for size in SIZES:
            for dtype in DTYPES:
                name = "%s_%s" % (dtype, size)
                times = {side: [] for side in workers}
                for i in range(rounds):
                    for side in sorted(workers, reverse=bool(i % 2)):
                        times[side].append(workers[side].ask(name))
                for side in workers:
                    show("product_%s_%s" % (name, side), times[side])
        for worker in workers.values():
            worker.process.stdin.close()
            worker.process.wait()


multiply() if sys.argv[1:] == ["multiply"] else main()
