"""One exception class for each status of the library; all of them are lamella.Error.

Hosts raise exceptions of their own for what fails in them; `of` gives the one that they tell of.
Invariant: the message is the library's own line.
Leaves finding the library to library.py.
"""

from __future__ import annotations

import re


class Error(RuntimeError):
    """A call of the library failed; `status` is its lam_status."""

    status: int

    def __init__(self, message: str, status: int = 0) -> None:
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


STATUSES = {  # name, as lam_status_name gives it: (number, class)
    "CANCELLED": (1, Error),
    "INVALID_ARGUMENT": (3, InvalidArgument),
    "DEADLINE_EXCEEDED": (4, DeadlineExceeded),
    "NOT_FOUND": (5, NotFound),
    "RESOURCE_EXHAUSTED": (8, ResourceExhausted),
    "FAILED_PRECONDITION": (9, FailedPrecondition),
    "UNIMPLEMENTED": (12, Unimplemented),
    "INTERNAL": (13, Error),
    "UNAVAILABLE": (14, Unavailable),
    "MISMATCH": (9 | 1 << 8, Mismatch),
    "PEER_DEAD": (14 | 2 << 8, PeerDead),
    "PEER_STALLED": (4 | 3 << 8, PeerStalled),
    "WOULD_BLOCK": (8 | 4 << 8, ResourceExhausted),
    "POISONED": (9 | 5 << 8, Poisoned),
    "INTERRUPTED": (1 | 6 << 8, Interrupted),
}
CLASSES = dict(STATUSES.values())
IN_TEXT = re.compile(r"lamella ([A-Z_]+): (.*)")  # what adapters write into a host's exception


def of_status(status: int, message: str) -> Error:
    """The exception for a lam_status that is not 0."""
    kind = CLASSES.get(status) or CLASSES.get(status & 0xFF) or Error
    return kind(message, status)


def of(exception: BaseException) -> Error | None:
    """The lamella.Error that a host's exception tells of, such as the JaxRuntimeError of a jitted
    call; None where it tells of none. Operators in PyTorch raise it themselves."""
    if isinstance(exception, Error):
        return exception
    found = IN_TEXT.search(str(exception))
    return of_status(STATUSES[found[1]][0], found[2]) if found and found[1] in STATUSES else None
