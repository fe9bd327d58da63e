"""What calling an operator from torch costs above the C call of the same row.

Tensors are f32 [1, 1], the same memory on both sides. Prints `name figure unit spread`: the
medians of rounds in which C and each mode of autograd take their turns.

    torch_call.py [rounds]
"""

import ctypes
import sys
from pathlib import Path

import torch
from figures import in_turn, show

import lamella.torch
from lamella import library
from lamella.torch import ops

LOOP = Path(__file__).parents[3] / "bazel-bin/tests/bench/hosts/call_loop.so"
CALLS = 200
INPUTS = {"all_reduce": "x", "linear": "xw", "ffn": "xw-w"}  # - is absent
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


def c_loop(name, tensors):
    """-> a function that makes CALLS calls of the row in C."""
    native = library.native()
    op = ctypes.c_uint32()
    library.check(native.lam_op_find(name.encode(), ctypes.byref(op)))
    loop = ctypes.CDLL(str(LOOP)).call_loop
    loop.restype = ctypes.c_double
    pointers = [t if t is None else t.data_ptr() for t in tensors]
    inputs = (ctypes.c_void_p * len(pointers))(*pointers)
    y = torch.empty(1, 1)

    def run():
        y_at, calls = ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(CALLS)
        assert loop(op, inputs, len(pointers), y_at, calls) >= 0

    return run


def host_loop(name, tensors, mode):
    operator = getattr(ops, name)

    def run():
        with mode():
            for _ in range(CALLS):
                operator(*tensors)

    return run


def measure(name, rounds):
    tensors = [None if kind == "-" else torch.randn(1, 1) for kind in INPUTS[name]]
    wanted = [t if t is None else t.clone().requires_grad_() for t in tensors]
    loops = {"c": c_loop(name, tensors)}
    for mode, enter in MODES.items():
        loops[mode] = host_loop(name, wanted if mode == "grad" else tensors, enter)
    times = in_turn(loops, rounds, CALLS)
    show("%s_c" % name, times["c"])
    for mode in MODES:
        show("%s_above_%s" % (name, mode), [host - c for host, c in zip(times[mode], times["c"])])


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 101
    torch.set_num_threads(1)
    for name in INPUTS:
        measure(name, rounds)


main()
