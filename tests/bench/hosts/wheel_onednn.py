"""Products by the oneDNN that the wheel carries, and by the machine's own, in turn.

Makes the wheel of this checkout and starts two processes: one has the package of the unpacked wheel,
the other that of the checkout; each multiplies when it is asked. The files that they have mapped
tell whose oneDNN each used.

    wheel_onednn.py [rounds]
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from figures import in_turn, show

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
        in_turn(products, 1)
        maps = open("/proc/self/maps").read().split()
        print(next(path for path in maps if "libdnnl.so" in path), flush=True)
        for line in sys.stdin:
            [times] = in_turn({0: products[line.strip()]}, 1).values()
            print(times[0], flush=True)


class Worker:
    def __init__(self, packages):
        self.process = subprocess.Popen(
            ["env", "PYTHONPATH=%s" % packages, sys.executable, "-B", HERE, "multiply"],
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
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
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
                for _ in range(rounds):
                    for side, worker in workers.items():
                        times[side].append(worker.ask(name))
                for side in workers:
                    show("product_%s_%s" % (name, side), times[side])
        for worker in workers.values():
            worker.process.stdin.close()
            worker.process.wait()


multiply() if sys.argv[1:] == ["multiply"] else main()
