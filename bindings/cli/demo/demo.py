"""lamella demo: trains a small decoder on real text, its layers and matrices spread over workers.

Reads the command line and chooses the host. Leaves the C host's runs to c_host.py, other hosts to
beside.py.
"""

import os
import time

from bindings.cli import packages
from bindings.cli.common import Problem
from bindings.cli.demo import on_gpu
from bindings.cli.demo.beside import Beside
from bindings.cli.demo.c_host import PASSED, Demo, build

PLACES = {"mixed": ("3", "1")}  # --pp and --tp where they are not given: else 2 and 2
HOSTS = ("c", "torch", "jax", "mixed")


def add_arguments(parser):
    parser.add_argument(
        "--host",
        choices=HOSTS,
        default="c",
        help="who trains: c (default); torch or jax, beside c; mixed: a pipeline of all three",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cpu (default), or cuda: on this machine's GPUs, beside one worker on the CPU",
    )
    parser.add_argument(
        "--pp", help="pipeline stages (default 2, or as many as --assign names; mixed: 3)"
    )
    parser.add_argument("--tp", help="parts of each matrix (default 2; mixed: 1)")
    parser.add_argument(
        "--schedule",
        default="1f1b",
        metavar="NAME",
        help="1f1b (default), auto, or another name that ./lamella schedule lists",
    )
    parser.add_argument(
        "--stages-per-rank",
        metavar="V",
        help="stages of each worker (default 2 where the schedule takes two, else 1)",
    )
    parser.add_argument("--assign", help="layers of each stage: '1-4|5-8|9-12' (default: evenly)")
    for name, text in PASSED.items():
        parser.add_argument(name, help=text)
    parser.add_argument("--save", metavar="FILE", help="write the trained model (safetensors)")
    parser.add_argument(
        "--out", default="lamella-demo", metavar="DIR", help="for pictures (default ./lamella-demo)"
    )


def main(args):
    if args.device == "cuda":
        on_gpu.prepare(args.host)
    if not on_gpu.is_packed():
        packages.ensure("gpu" if args.device == "cuda" else "demo")
    # One worker with several threads: waiting threads sleep, so that a busy machine slows it down
    # by its share and not by a factor (measured with 3 other busy processes on 2 cores: 4 times).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    began = time.monotonic()
    passed = make(args).run()
    print("\nall of this took %.0f s" % (time.monotonic() - began))
    return 0 if passed else 1


def make(args):
    pp, tp = PLACES.get(args.host, ("2", "2"))
    args.tp = args.tp or tp
    args.pp = args.pp or (None if args.assign is not None else pp)
    if on_gpu.is_packed() and (args.host, args.device) != ("c", "cuda"):
        raise Problem("this packed folder holds the demo for --host c --device cuda alone", 2)
    if args.host == "c":
        return Demo(on_gpu.build() if args.device == "cuda" else build(), args)
    return Beside(args)
