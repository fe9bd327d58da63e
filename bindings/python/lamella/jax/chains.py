"""Refuses a second chain of tokens for one group, where tracing shows it.

Calls of one chain have an order; two chains of a group have none between them, and ranks whose
programs were compiled differently would meet in different calls. Seen is what one trace shows (a
jitted function, a shard_map, a branch, a scan's body): a new token for a group that was called
there already, or a token given to two calls of a group. Not seen are chains that begin in
different traces of one program (one inside jax.grad, say, and one after it), and calls outside of
tracing, which run one by one.
Invariant: what is refused cannot be in order; nothing here keeps a trace alive.
"""

import threading
import weakref
from collections import deque

import jax
from jax.extend import core

from lamella import errors

REMEMBERED = 32  # traces of a thread; they nest


class Trace:
    """What happened in one trace. state: JAX's word for it."""

    def __init__(self, state):
        self.state = state
        self.groups = {}  # handle -> the name of its first call
        self.new = []  # weak references of tokens that new_token made
        self.given = []  # (token, handle, the name of the call it was given to)

    def check(self, name, handle, token):
        before = next((n for t, h, n in self.given if t() is token and h == handle), None)
        if before is not None:
            raise _refused(name, "it was given to %s already" % before)
        if handle in self.groups and any(t() is token for t in self.new):
            raise _refused(name, "it is a new one, and %s has begun a chain" % self.groups[handle])
        self.groups.setdefault(handle, name)
        self.given.append((weakref.ref(token), handle, name))


class Traces(threading.local):
    def __init__(self):
        self.recent = deque(maxlen=REMEMBERED)

    def now(self):
        state = core.get_opaque_trace_state()
        for trace in self.recent:
            if trace.state == state:
                return trace
        self.recent.append(Trace(state))
        return self.recent[-1]


_traces = Traces()


def made(token):
    """new_token made it."""
    _traces.now().new.append(weakref.ref(token))
    return token


def check(name, group, token, arrays):
    """Before a call of a group with other ranks, which is given these arrays and this token."""
    if any(isinstance(x, jax.core.Tracer) for x in (token, *arrays)):
        _traces.now().check(name, group.handle, token)


def _refused(name, why):
    return errors.InvalidArgument(
        "lamella.jax.%s: token: %s: a group's calls make one chain, each takes the token that the "
        "call before gave" % (name, why),
        3,
    )
