"""Ctrl-C in a wait for a peer: the wait ends, and KeyboardInterrupt is raised.

The context made here is that of this process's groups. Its waits let Python's signal handlers run,
on the main thread, and end when one raises, or when the interpreter ends; other ranks then hear of
it. A host's own handlers stay as they are, and one that raises nothing ends nothing.
Invariant: what a handler raises in a wait is raised as soon as the main thread is back in Python:
in place of the failure that the call would have given, whose cause it was.
Leaves when to look for signals to native/interrupt.c.
"""

import atexit
import ctypes
import functools

from lamella import library

PYTHON = [  # in the order of interrupt.c's struct
    "PyGILState_Ensure",
    "PyGILState_Release",
    "PyErr_CheckSignals",
    "PyErr_Clear",
    "PyErr_Fetch",
    "PyErr_Restore",
    "Py_AddPendingCall",
]


@functools.cache
def adapter():
    return ctypes.CDLL(library.path("lamella_python.so"))


def end_first():
    """When the program ends, waits end before what was registered so far is called: JAX would wait
    there for its calls, which wait for peers."""
    atexit.unregister(adapter().lam_python_end)
    atexit.register(adapter().lam_python_end)


def should_stop():
    """The address of the native function that waits poll."""
    found = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in PYTHON]
    adapter().lam_python_open((ctypes.c_void_p * len(PYTHON))(*found))
    end_first()
    return ctypes.cast(adapter().lam_python_should_stop, ctypes.c_void_p)


@functools.cache
def context():
    """The lam_context of this process's groups; it lives as long as the process."""
    desc = library.ContextDesc(struct_size=ctypes.sizeof(library.ContextDesc))
    desc.should_stop = should_stop()
    out = ctypes.c_void_p()
    library.check(library.native().lam_context_create(ctypes.byref(desc), ctypes.byref(out)))
    return out
