"""One rank that waits, case after case, for a peer that does not call, until a signal comes.

    python waiting.py CASE ID ...   (ID: a group's id in hex; rank 0 of 2)

Says `waiting CASE` once the main thread waits in the library, and `CASE: EXCEPTION` for what ended
the wait. The last case's exception ends the program.
"""

import os
import signal
import sys
import threading

import lamella
from lamella import library


def torch_op(group):
    import lamella.torch
    import torch

    return lambda: torch.ops.lamella.all_reduce(torch.ones(3), group=group.handle)


def torch_backward(group):
    import lamella.torch
    import torch

    y = torch.ops.lamella.copy_to_group(torch.ones(3, requires_grad=True), group=group.handle)
    return lambda: y.sum().backward()


def torch_compiled(group):
    import lamella.torch
    import torch

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x):
        return torch.ops.lamella.all_reduce(x, group=group.handle) * 2

    return lambda: step(torch.ones(3))


def jax_jitted(group):
    import jax
    import lamella.jax as lj

    step = jax.jit(lambda x, token: lj.all_reduce(x, group=group, token=token))
    return lambda: step(jax.numpy.ones(3), lj.new_token())[0].block_until_ready()


def jax_on_another_thread(group):
    """XLA runs what is more than a few operations on a thread of its own."""
    import jax
    import lamella.jax as lj

    step = jax.jit(lambda x, token: lj.all_reduce(x @ x, group=group, token=token))
    x, token = jax.block_until_ready((jax.numpy.ones((64, 64)), lj.new_token()))
    return lambda: step(x, token)[0].block_until_ready()


def pipeline(group):
    from lamella.pipeline import Pipeline, Schedule, Stage

    class Last(Stage):
        def forward(self, io):
            pass

        backward = forward

    schedule = Schedule.parse("rank 0: 1F0 1B0\nrank 1: 0F0 0B0\n")
    made = Pipeline(schedule, {1: Last()}, [[((4,), "f32")]], group)
    return made.run


def handler_that_raises_nothing(group):
    heard = []

    def hear(number, frame):
        heard.append(number)
        say("heard")

    before = signal.signal(signal.SIGINT, hear)

    def wait():
        try:
            group.warmup()
        finally:
            signal.signal(signal.SIGINT, before)
            say("signals %d" % len(heard))

    return wait


def create(id):
    """With deadlines that end the test where a signal does not."""
    late = dict(deadline_ms=120000, first_deadline_ms=120000)
    return lamella.Group.create(bytes.fromhex(id), 0, 2, **late)


def say(text):
    print(text, flush=True)


def sleeps(group):
    info = library.GroupInfo(struct_size=library.ctypes.sizeof(library.GroupInfo))
    library.check(library.native().lam_group_get_info(group._pointer, library.ctypes.byref(info)))
    return info.sleeps


def sockets():
    """How many this process has: a rank that waits for others to come listens on one."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink("/proc/self/fd/" + fd).startswith("socket:")
        except FileNotFoundError:  # the one that lists them
            pass
    return count


def tell_when_waiting(case, count):
    """A thread that says so when `count` has grown: nobody else can, for the main one waits."""
    before = count()

    def watch():
        while count() == before:
            pass
        say("waiting " + case)

    threading.Thread(target=watch, daemon=True).start()


def main(cases):
    for i, (case, id) in enumerate(cases):
        if case == "create":
            call = lambda: create(id)
            count = sockets
        else:
            group = create(id)
            call = globals()[case](group)
            count = lambda: sleeps(group)
        tell_when_waiting(case, count)
        try:
            call()
            say("%s: nothing" % case)
        except BaseException as error:
            say("%s: %s" % (case, type(error).__name__))
            if i + 1 == len(cases):
                raise


main(list(zip(sys.argv[1::2], sys.argv[2::2])))
