"""One exception class for each status of the library; all of them are lamella.Error.

Invariant: the message is the library's own line. Leaves finding the library to library.py.
"""


class Error(RuntimeError):
    """A call of the library failed; `status` is its lam_status."""

    def __init__(self, message, status=0):
        super().__init__(message)
        self.status = status


class InvalidArgument(Error, ValueError):
    """An argument was refused; nothing was done."""


class DeadlineExceeded(Error, TimeoutError):
    """Something took longer than it may."""


class NotFound(Error, LookupError):
    """No such operator, group or edge."""


class ResourceExhausted(Error, MemoryError):
    """Not enough memory, or a limit was reached."""


class FailedPrecondition(Error):
    """Not possible in the state that things are in."""


class Unimplemented(Error, NotImplementedError):
    """This build or device cannot do it."""


class Unavailable(Error, ConnectionError):
    """A peer or a service cannot be reached."""


class Mismatch(FailedPrecondition):
    """Ranks called different operations, dtypes or shapes; the message names both sides."""


class Poisoned(FailedPrecondition):
    """An earlier failure ended this group's world."""


class PeerDead(Unavailable):
    """A rank's process ended."""


class PeerStalled(DeadlineExceeded):
    """A rank did not come before the deadline."""


class Interrupted(Error):
    """The host asked for the wait to end."""


CLASSES = {
    3: InvalidArgument,
    4: DeadlineExceeded,
    5: NotFound,
    8: ResourceExhausted,
    9: FailedPrecondition,
    12: Unimplemented,
    14: Unavailable,
    9 | 1 << 8: Mismatch,
    14 | 2 << 8: PeerDead,
    4 | 3 << 8: PeerStalled,
    9 | 5 << 8: Poisoned,
    1 | 6 << 8: Interrupted,
}


def of_status(status, message):
    """The exception for a lam_status that is not 0."""
    kind = CLASSES.get(status) or CLASSES.get(status & 0xFF) or Error
    return kind(message, status)
