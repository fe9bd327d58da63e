"""Streams of CUDA's driver, as far as pipelines need them: JAX makes none for others.

Invariant: only `wait` lets the host wait; a stream lives as long as the process.
Leaves to places.py what is queued on one.
"""

import ctypes
from contextlib import contextmanager, suppress
from functools import cache

from lamella import errors

_HANDLE, _OUT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_CALLS = {
    "cuInit": [ctypes.c_uint],
    "cuDevicePrimaryCtxRetain": [_OUT, ctypes.c_int],
    "cuCtxPushCurrent_v2": [_HANDLE],
    "cuCtxPopCurrent_v2": [_OUT],
    "cuStreamCreate": [_OUT, ctypes.c_uint],
    "cuStreamSynchronize": [_HANDLE],
    "cuStreamWaitEvent": [_HANDLE, _HANDLE, ctypes.c_uint],
    "cuEventCreate": [_OUT, ctypes.c_uint],
    "cuEventRecord": [_HANDLE, _HANDLE],
    "cuEventQuery": [_HANDLE],
    "cuEventDestroy_v2": [_HANDLE],
    "cuMemcpyDtoDAsync_v2": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, _HANDLE],
}
NON_BLOCKING, NO_TIMES, NOT_READY = 1, 2, 600


@cache
def driver():
    """JAX has opened it already."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise errors.Unavailable("CUDA's driver: %s" % error, 14) from None
    for name, arguments in _CALLS.items():
        getattr(library, name).argtypes = arguments
    call(library, "cuInit", 0)
    return library


def call(library, name, *arguments):
    status = getattr(library, name)(*arguments)
    if status != 0:
        raise errors.Unavailable("%s: CUDA's error %d" % (name, status), 14)


def made(library, name, *arguments):
    """What a call gives by its first argument, a handle."""
    out = ctypes.c_void_p()
    call(library, name, ctypes.byref(out), *arguments)
    return out.value


class Mark:
    """A point of a stream."""

    def __init__(self, stream):
        self._stream, self._driver = stream, driver()
        with stream.current():
            self.handle = made(self._driver, "cuEventCreate", NO_TIMES)
            call(self._driver, "cuEventRecord", self.handle, stream.handle)

    def is_passed(self):
        status = self._driver.cuEventQuery(self.handle)
        if status not in (0, NOT_READY):
            raise errors.Unavailable("cuEventQuery: CUDA's error %d" % status, 14)
        return status == 0

    def __del__(self):
        if not getattr(self, "handle", None):
            return
        with suppress(errors.Unavailable), self._stream.current():  # CUDA may have ended by now
            self._driver.cuEventDestroy_v2(self.handle)


class Stream:
    """A stream of a device, by CUDA's number, in the context that JAX's own are in."""

    def __init__(self, device):
        self.device, self._driver = device, driver()
        self._context = made(self._driver, "cuDevicePrimaryCtxRetain", device)
        with self.current():
            self.handle = made(self._driver, "cuStreamCreate", NON_BLOCKING)

    @contextmanager
    def current(self):
        """Its context is the thread's, as the driver wants of who makes something in it."""
        call(self._driver, "cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            call(self._driver, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def lead(self, other):
        """What the stream `other`, a handle, is given next comes after all that is queued here."""
        mark = Mark(self)
        with self.current():
            call(self._driver, "cuStreamWaitEvent", other, mark.handle, 0)

    def copy(self, to, start, n):
        """n bytes of the device's memory."""
        if n:
            with self.current():
                call(self._driver, "cuMemcpyDtoDAsync_v2", to, start, n, self.handle)

    def wait(self):
        """The host, for all that is queued here."""
        with self.current():
            call(self._driver, "cuStreamSynchronize", self.handle)


of = cache(Stream)  # each device's one, for all pipelines of the process
