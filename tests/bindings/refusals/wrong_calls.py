"""Calls the package's public functions with what they cannot take, in one process.

    python wrong_calls.py neutral|rows|torch|jax SEED

Says each call's name before it, so that one that ends the interpreter is the last; ends by
`survived`. A call of CASES that raises nothing is a failure; a row's random call need not raise.
"""

import ctypes
import datetime
import faulthandler
import random
import resource
import sys

import numpy

from lamella import errors, group, library, operators, pipeline, rows, schedule
from lamella.group import Group
from lamella.pipeline import Pipeline, Schedule, Stage, Tied

F32 = 2 | 32 << 8
SPARE_BYTES = 4 << 30  # so that a huge size is refused, and not tried on the whole machine
X = numpy.ones((2, 3), "f")
HUGE = numpy.broadcast_to(numpy.float32(1), (2**30, 2**30))
BOOM = 1 << 80


def alone():
    return Group.create(Group.new_id(), 0, 1)


def closed():
    found = alone()
    found.close()
    return found


class Passes(Stage):
    def forward(self, io):
        pass

    backward = forward


class Fails(Passes):
    def __init__(self, call):
        self.forward = call


def plan():
    return Schedule.build("1f1b", 1, 2)


def freed():
    found = plan()
    found.__del__()
    return found


def pipe(stage=None, **more):
    return Pipeline(plan(), {0: stage or Passes()}, [], **more)


def two_stages(edges, **more):
    both = Schedule.parse("0F0 1F0 1B0 0B0")
    return Pipeline(both, {0: Passes(), 1: Passes()}, edges, **more)


def ended():
    found = pipe()
    found.close()
    return found


def run(stage):
    with pipe(stage) as running:
        running.run()


def run_again():
    """From within a stage."""
    with pipe(Fails(lambda io: running.run())) as running:
        running.run()


def close_within():
    with alone() as own:
        with pipe(Fails(lambda io: own.close()), group=own) as running:
            running.run()


class Lends:
    """Says that it has DLPack."""

    def __init__(self, thing):
        self.thing = thing

    def __dlpack__(self, **_):
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


def taken():
    """A capsule that another has taken the tensor out of."""
    capsule = X.__dlpack__()
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    rename(("PyCapsule_SetName", ctypes.pythonapi))(capsule, b"used_dltensor")
    return Lends(capsule)


def linear(*tensors, out=None, **attributes):
    return lambda: operators.run("linear", tensors, [out], **attributes)


def opened(id=None, rank=0, size=1, **deadlines):
    return lambda: Group.create(id or Group.new_id(), rank, size, **deadlines)


EVENT = schedule.Event(0, 0, 0, "F", 0, 0, 1)
SOON = dict(deadline_ms=1, first_deadline_ms=1)

NEUTRAL = {
    "id: cut off": opened(b"short"),
    "id: int": opened(7),
    "rank: above": opened(rank=5, size=2, **SOON),
    "rank: below": opened(rank=-1, size=2, **SOON),
    "rank: text": opened(rank="0"),
    "size: none": opened(size=0, **SOON),
    "size: below": opened(size=-3, **SOON),
    "size: huge": opened(size=2**31 - 1, **SOON),
    "closed group: warmup": lambda: closed().warmup(),
    "closed group: split": lambda: closed().split(0),
    "closed group: error": lambda: closed().error,
    "closed group: grid": lambda: group.grid(closed(), 1, 1),
    "closed group: pipeline": lambda: pipe(group=closed()),
    "closed group: tensor": lambda: pipe(tensor=closed()),
    "closed group: call": lambda: operators.run("all_reduce", [X], [X], group=closed().handle),
    "split: text": lambda: alone().split("0"),
    "grid: none": lambda: group.grid(alone(), 0, 1),
    "grid: text": lambda: group.grid("x", 1, 1),
    "place: wrong": lambda: group.place(-7),
    "place: text": lambda: group.place("x"),
    "path": lambda: library.path("libnothing.so"),
    "shard: rank": lambda: library.shard(10, 5, 2),
    "shard: size": lambda: library.shard(10, 0, 0),
    "shard: total": lambda: library.shard(-1, 0, 2),
    "shard: unit": lambda: library.shard(10, 0, 2, unit=-1),
    "shard: text": lambda: library.shard("10", 0, 2),
    "packed: dtype": lambda: library.packed_cols(0xFFFF, 4, 4),
    "packed: below": lambda: library.packed_cols(F32, -4, 4),
    "packed: huge": lambda: library.packed_cols(F32, 2**62, 2**62),
    "packed: side": lambda: library.packed_cols(F32, 4, 4, 99),
    "operator: none": lambda: operators.run(None, [], []),
    "operator: list": lambda: operators.run([], [], []),
    "operator: bytes": lambda: operators.run(b"linear", [X], [X]),
    "inputs: absent": lambda: operators.run("linear", None, None),
    "inputs: none": lambda: operators.run("linear", [None] * 3, [None]),
    "inputs: too many": lambda: operators.run("linear", [X] * 1000, [X] * 1000),
    "inputs: text": linear("x", "w"),
    "inputs: complex": linear(X.astype("D"), X),
    "inputs: objects": linear(numpy.array([None]), X),
    "inputs: big endian": linear(X.astype(">f4"), X),
    "inputs: huge": linear(HUGE, HUGE, out=numpy.empty((2, 2), "f")),
    "infer: huge": lambda: operators.infer("linear", [HUGE, X]),
    "output: absent": linear(X, X),
    "output: small": linear(X, X, out=numpy.empty((1, 1), "f")),
    "output: expanded": linear(X, X, out=numpy.broadcast_to(X[:, :1], (2, 2))),
    "lends: none": linear(Lends(None), X),
    "lends: int": linear(Lends(7), X),
    "lends: failure": linear(Lends(KeyError("x")), X),
    "lends: other": linear(Lends(datetime.datetime_CAPI), X),
    "lends: taken": linear(taken(), X),
    "attribute: unknown": linear(X, X, nothing=1),
    "attribute: int": linear(X, X, act=5),
    "attribute: text": linear(X, X, save="x"),
    "attribute: word": linear(X, X, act="x" * 10000),
    "attribute: huge": linear(X, X, save=BOOM),
    "attribute: group": lambda: operators.run("all_reduce", [X], [X], group=-1),
    "schedule: name": lambda: Schedule.build("nothing", 2, 2),
    "schedule: none": lambda: Schedule.build(None, 2, 2),
    "schedule: below": lambda: Schedule.build("1f1b", -2, 2),
    "schedule: huge": lambda: Schedule.build("1f1b", 2**31 - 1, 2**31 - 1),
    "schedule: huge stages": lambda: Schedule.build("interleaved", 2**16, 2**16, 2**16),
    "parse: nothing": lambda: Schedule.parse(""),
    "parse: none": lambda: Schedule.parse(None),
    "parse: zeros": lambda: Schedule.parse("\0" * 99),
    "parse: rank": lambda: Schedule.parse("rank 2147483647: 0F0 0B0"),
    "parse: micro": lambda: Schedule.parse("0F2147483647 0B2147483647"),
    "parse: number": lambda: Schedule.parse("99999999999999999999F0"),
    "parse: again": lambda: Schedule.parse("0F0 " * 100000),
    "load": lambda: Schedule.load("/nothing/here"),
    "freed schedule: text": lambda: freed().text(),
    "freed schedule: check": lambda: freed().check(),
    "freed schedule: simulate": lambda: freed().simulate(),
    "freed schedule: pipeline": lambda: Pipeline(freed(), {0: Passes()}, []),
    "text: form": lambda: plan().text("xml"),
    "simulate: nan": lambda: plan().simulate(float("nan")),
    "simulate: below": lambda: plan().simulate(-1),
    "simulate: text": lambda: plan().simulate("x"),
    "stages_of": lambda: plan().stages_of(99),
    "rank_of": lambda: plan().rank_of(99),
    "choose: below": lambda: schedule.choose(-1, -1),
    "choose: none": lambda: schedule.choose(0, 0),
    "draw: kind": lambda: schedule.draw([EVENT._replace(kind="?")]),
    "draw: rank": lambda: schedule.draw([EVENT._replace(rank=-5)]),
    "draw: many ranks": lambda: schedule.draw([EVENT._replace(rank=2**31 - 1)], "svg"),
    "draw: form": lambda: schedule.draw([EVENT], "xml"),
    "pipeline: stages": lambda: Pipeline(plan(), {7: Passes()}, []),
    "pipeline: no schedule": lambda: Pipeline(None, {0: Passes()}, []),
    "pipeline: group": lambda: pipe(group="x"),
    "pipeline: edges": lambda: Pipeline(plan(), {0: Passes()}, [[((2**62,), "f32")]]),
    "pipeline: no call": lambda: run(Fails(5)),
    "pipeline: huge edge": lambda: two_stages([[((2**40, 2**20), "f32")]]),
    "pipeline: dtype": lambda: two_stages([[((2,), 0xFFFF)]]),
    "pipeline: tied": lambda: pipe(tied=[Tied((0, 9), (2,), "f32", 1)]),
    "pipeline: codec": lambda: two_stages([[((2,), "f32")]], codec=7),
    "closed pipeline: run": lambda: ended().run(),
    "closed pipeline: report": lambda: ended().report(),
    "closed pipeline: explain": lambda: ended().explain(),
    "run: text": lambda: pipe().run("x"),
    "stage: no loss": lambda: run(Fails(lambda io: io.add_loss("x"))),
    "stage: no view": lambda: run(Fails(lambda io: io.outputs[0].numpy())),
    "stage: runs": run_again,
    "stage: closes": close_within,
    "stage: wrong count": lambda: run(Fails(lambda: None)),
    "events": lambda: pipeline.schedule.events_of([EVENT], 5),
    "of_status": lambda: library.check(12345),
}


def torch_cases():
    import lamella.torch as lt
    import torch

    x, ops = torch.ones(2, 3), torch.ops.lamella
    huge = torch.ones(1).expand(2**31, 2**31)
    return {
        "linear: none": lambda: ops.linear(None, None),
        "linear: shapes": lambda: ops.linear(x, torch.ones(4)),
        "linear: ints": lambda: ops.linear(x.long(), x.long()),
        "linear: complex": lambda: ops.linear(x.cfloat(), x.cfloat()),
        "linear: sparse": lambda: ops.linear(x.to_sparse(), x),
        "linear: huge": lambda: ops.linear(huge, huge),
        "linear: word": lambda: ops.linear(x, x, act="x" * 10000),
        "all_reduce: group": lambda: ops.all_reduce(x, group=999),
        "all_reduce: closed": lambda: ops.all_reduce(x, group=closed().handle),
        "backward: closed": backward_closed,
        "module: below": lambda: lt.ColumnParallelLinear(-1, 5),
        "module: text": lambda: lt.ParallelFFN("x", 5),
        "module: group": lambda: lt.RowParallelLinear(3, 4, group=closed())(x),
        "parallelize: none": lambda: lt.parallelize(None),
        "parallelize: closed": lambda: lt.parallelize(torch.nn.Linear(2, 2), closed()),
        "load": lambda: lt.load(torch.nn.Linear(2, 2), "/nothing/here"),
        "stage: none": lambda: run(lt.PipelineStage(None)),
        "group: none": lambda: lt.group(),
        "accumulate: none": lambda: lt.accumulate_grads(None),
        "view: none": lambda: lt.from_view(None),
    }


def backward_closed():
    import torch

    with alone() as own:
        x = torch.ones(3, requires_grad=True)
        y = torch.ops.lamella.copy_to_group(x, group=own.handle)
    y.sum().backward()


def jax_cases():
    import jax
    import jax.numpy as jnp
    import lamella.jax as lj

    x, token = jnp.ones((2, 3)), lj.new_token()
    return {
        "linear: none": lambda: lj.linear(None, None),
        "linear: shapes": lambda: jax.jit(lj.linear)(x, x),
        "linear: ints": lambda: lj.linear(x.astype(int), x.T.astype(int)),
        "linear: word": lambda: lj.linear(x, x.T, act="x" * 10000),
        "linear: numbers": lambda: lj.linear(3, 4),
        "all_reduce: closed": lambda: lj.all_reduce(x, group=closed(), token=token),
        "all_reduce: group": lambda: lj.all_reduce(x, group=7, token=token),
        "all_reduce: after": closed_after_compiling,
        "group: none": lambda: lj.LocalGroup(0, "tp", **SOON),
        "group: below": lambda: lj.LocalGroup(-1, "tp"),
        "stage: none": lambda: run(lj.PipelineStage(None, x)),
        "stage: loss": lambda: run(lj.PipelineStage(lambda p: p, x)),
        "pipeline: closed": lambda: lj.Pipeline(plan(), {0: Passes()}, [], group=closed()),
        "pipeline: edges": lambda: lj.Pipeline(plan(), {0: Passes()}, [["x"]]),
        "pipeline: complex": lambda: lj.Pipeline(plan(), {0: Passes()}, [[((2,), jnp.complex64)]]),
    }


def closed_after_compiling():
    import jax
    import jax.numpy as jnp
    import lamella.jax as lj

    own = alone()
    step = jax.jit(lambda x: lj.all_reduce(x, group=own, token=lj.new_token()))
    step(jnp.ones(3))
    own.close()
    jax.block_until_ready(step(jnp.ones(3)))


INTS = [-(2**63), -1, 0, 1, 2, 7, 2**31, 2**62, F32, 4 | 16 << 8]
FLOATS = [float("nan"), float("inf"), -1.0, 0.0, 1e300]
WORDS = ["", "gelu", "x" * 10000]
DTYPES = ["f4", "f2", "f8", "i4", "i8", "u1", "i1"]
CALLS_PER_ROW = 60


def row_cases(chance):
    """Every row with random tensors and attributes; groups are wrong, so nothing waits."""
    for row in rows.table().values():
        for i in range(CALLS_PER_ROW):
            yield "%s: %d" % (row.name, i), lambda row=row: random_call(row, chance)


def random_call(row, chance):
    inputs = [random_tensor(chance) for _ in row.inputs]
    outputs = [random_tensor(chance) for _ in row.outputs]
    given = {a.name: random_value(a, chance) for a in row.attributes if chance.random() < 0.7}
    if row.communicates:
        given["group"] = 999
    for function, tensors in (operators.infer, [inputs]), (operators.run, [inputs, outputs]):
        try:
            function(row.name, *tensors, **given)
        except (errors.Error, TypeError, ValueError):
            pass


def random_tensor(chance):
    if chance.random() < 0.1:
        return None
    rank = chance.choice([0, 1, 2, 2, 2, 3, 9])
    dims = [chance.choice([0, 1, 2, 3, 4, 4, 4, 8]) for _ in range(rank)]
    array = numpy.zeros(dims, chance.choice(DTYPES))
    array.fill(chance.choice([0, 1, 3, 100]))
    turn = chance.random()
    return array.T if turn < 0.2 else array[..., ::2] if turn < 0.3 and dims else array


def random_value(attribute, chance):
    if attribute.type == "I":
        return [chance.choice(INTS) for _ in range(chance.randrange(9))]
    return chance.choice({"i": INTS, "f": FLOATS, "s": WORDS}[attribute.type])


def limit():
    """Address space, over what is used now."""
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def main(part, seed):
    faulthandler.enable()
    if part == "rows":
        for name, call in row_cases(random.Random(seed)):
            print(name, flush=True)
            call()
        return []
    cases = {"neutral": lambda: NEUTRAL, "torch": torch_cases, "jax": jax_cases}[part]()
    limit()
    return [name for name, call in cases.items() if not refused(name, call)]


def refused(name, call):
    print(name, end=": ", flush=True)
    try:
        found = call()
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[:1], flush=True)
        return True
    print("nothing raised, found %r" % (found,), flush=True)
    return False


if __name__ == "__main__":
    unrefused = main(sys.argv[1], int(sys.argv[2]))
    print("survived" if not unrefused else "not refused: %s" % unrefused)
    sys.exit(bool(unrefused))
