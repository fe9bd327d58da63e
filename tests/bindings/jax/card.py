"""JAX on a GPU, as far as Lamella sees it: `python card.py SEED`, with libcuda_standin.so in the
place of libcuda.so.1 and liblamella_cuda.so.0, started by test_jax_card.py.

Programs are JAX's own, on the CPU. What they read and give lies in the stand-in's memory, and is
read and written there on a stream of XLA's, in the order that XLA itself keeps: a view is read
after the event of the stream that DLPack named, at any time until the program's results are there;
what is dropped is written over by a program that comes later.
Invariant: says that a case went well where numbers are those of one function, nothing that was
read changed too early, and the stand-in found no misuse. It is emulated: no GPU, and no CUDA client
of JAX's.
"""

import contextlib
import ctypes
import itertools
import sys
import threading
import traceback
import weakref

import frames
import jax
import jax.numpy as jnp
import lamella
import lamella.jax as lj
import numpy as np
from lamella.jax import native, places, streams, views
from lamella.pipeline import Schedule

SEED = int(sys.argv[1])
DEADLINES = {"deadline_ms": 60000, "first_deadline_ms": 120000}
jit = jax.jit
driver = streams.driver()
pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
driver.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
driver.cuMemsetD8Async.argtypes = [ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p]
driver.emulated_seed.argtypes = [ctypes.c_uint64]
for name in ("emulated_read", "emulated_write"):
    getattr(driver, name).argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t]
    getattr(driver, name).restype = None
driver.emulated_reports.restype = ctypes.c_char_p


class Client:
    """XLA's on one device."""

    names_streams = True  # as its StreamExecutor client does; its TFRT client does not

    def __init__(self, device):
        self.device = device
        self.own = streams.Stream(device.local_hardware_id)
        self.outside = itertools.cycle([streams.Stream(self.own.device) for _ in range(2)])
        self.read = []  # (bytes when they were ready, where a program's reading puts them)
        self.memory = {}  # id of an array: where it lies

    def new(self, n):
        out = ctypes.c_uint64()
        with self.own.current():
            assert driver.cuMemAlloc_v2(ctypes.byref(out), max(n, 1)) == 0
        return out.value

    def bytes_at(self, address, n):
        found = (ctypes.c_uint8 * n)()
        driver.emulated_read(address, found, n)
        return bytes(found)

    def take(self, lender):
        """jax.numpy.from_dlpack."""
        stream = next(self.outside)
        capsule = lender.__dlpack__(stream=stream.handle if self.names_streams else None)
        managed = views.Managed.from_address(pointer(capsule, b"dltensor"))
        tensor = managed.tensor
        shape = tensor.shape[: tensor.ndim]
        dtype = np.dtype(native.BY_CODE[tensor.dtype.code, tensor.dtype.bits])
        n, address = int(np.prod(shape)) * dtype.itemsize, tensor.data
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)(ctypes.addressof(managed))
        if self.names_streams:
            stream.lead(self.own.handle)
            stream.wait()
        now, later = self.bytes_at(address, n), self.new(n)
        self.own.copy(later, address, n)
        self.read.append((now, later))
        array = np.frombuffer(now, dtype).reshape(shape)
        array = jax.device_put(array.copy(), self.device)
        self.memory[id(array)] = address
        weakref.finalize(array, self.memory.pop, id(array))
        return array

    def give(self, array):
        """A result, where the program leaves it."""
        data = np.asarray(array).tobytes()
        made, place = self.new(len(data)), self.new(len(data))
        driver.emulated_write(made, data, len(data))
        self.own.copy(place, made, len(data))
        self.memory[id(array)] = place
        weakref.finalize(array, self.drop, id(array), place, len(data))

    def drop(self, number, place, n):
        self.memory.pop(number)
        if n:
            with self.own.current():
                driver.cuMemsetD8Async(place, 0xFF, n, self.own.handle)

    def check(self):
        streams.of(self.own.device).wait()
        self.own.wait()
        for now, later in self.read:
            assert self.bytes_at(later, len(now)) == now, "written before a program had read it"
        self.read.clear()


class Clients(dict):
    """{device: Client}, in JAX's place."""

    def install(self):
        places.is_gpu = lambda device: device in self
        places.address_of = lambda array: self.of(array).memory[id(array)]
        places.await_on = self.await_on
        jax.numpy.from_dlpack = self.from_dlpack
        jax.jit = self.jit

    def of(self, array):
        return self[places.device_of(array)]

    def await_on(self, stream, array):
        client = self.of(array)
        if client.names_streams:
            client.own.lead(stream)
        else:
            client.own.wait()

    def from_dlpack(self, lender):
        kind, number = lender.__dlpack_device__()
        assert kind == 2
        return next(c for c in self.values() if c.own.device == number).take(lender)

    def jit(self, f, **options):
        compiled = jit(f, **options)

        def run(*arguments):
            found = compiled(*arguments)
            for array in jax.tree.leaves(found):
                if id(array) not in self.of(array).memory:
                    self.of(array).give(array)
            return found

        return run


driver.emulated_seed(SEED)
clients = Clients((device, Client(device)) for device in jax.devices()[:2])
clients.install()


# -- what is trained --


def hidden(w, x):
    return jnp.tanh(lj.linear(x, w["w"], w["b"]))


def through(w, x):
    """What it was given, too."""
    return x, jnp.tanh(lj.linear(x, w["w"]))


def last(w, x, h, target):
    return jnp.mean((lj.linear(x + h, w["w"]) - target) ** 2) / MICROS


MICROS, ROWS, WIDTH = 4, 6, 8
chance = np.random.default_rng(SEED)


def draw(*shape):
    return jnp.asarray(chance.standard_normal(shape), jnp.float32)


PARAMS = [
    {"w": draw(5, WIDTH), "b": draw(WIDTH)},
    {"w": draw(WIDTH, WIDTH), "b": draw(WIDTH)},
    {"w": draw(WIDTH, WIDTH)},
    {"w": draw(WIDTH, 3)},
]
XS, TARGETS = draw(MICROS, ROWS, 5), draw(MICROS, ROWS, 3)
FUNCTIONS = [hidden, hidden, through, last]
FEEDS = {0: lambda step, micro: (XS[micro],), 3: lambda step, micro: (TARGETS[micro],)}
ROOM = (ROWS + 2, WIDTH), "f32"  # for more than comes
EDGES = [[ROOM], [ROOM], [ROOM, ROOM]]


def whole(params):
    def loss(x, target):
        h = hidden(params[1], hidden(params[0], x))
        return last(params[3], *through(params[2], h), target)

    return sum(loss(x, t) for x, t in zip(XS, TARGETS))


def close(got, want):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, "d"), np.asarray(w, "d")
        assert np.max(np.abs(g - w)) <= 2.0**-18 * (1 + np.max(np.abs(w))), (g, w)


WANT, WANTED = jax.value_and_grad(whole)(PARAMS)


def train(schedule, device, split=False, group=None, steps=2):
    """With a try after each step, from the same stages."""
    mine = schedule.stages_of(group.rank if group else 0)
    stages = {
        i: lj.PipelineStage(FUNCTIONS[i], PARAMS[i], FEEDS.get(i), split=split, device=device)
        for i in mine
    }
    want = WANT if 3 in mine else 0.0
    with contextlib.ExitStack() as stack:
        more = {"group": group, "any_order": split}
        training = stack.enter_context(lj.Pipeline(schedule, stages, EDGES, **more))
        trying = lj.Pipeline(schedule, stages, EDGES, forward_only=True, **more)
        stack.enter_context(trying)
        for step in range(steps):
            close(training.run(step), want)
            close(trying.run(step), want)
            close([stages[i].take_gradients() for i in mine], [WANTED[i] for i in mine])
            assert not any(stage._losses or stage._flights for stage in stages.values())
        clients[device].check()


# -- cases --


def calls_of_operators():
    """On the second device: on XLA's stream, between what XLA queues there before and after."""
    client = clients[jax.devices()[1]]
    x, w, y = draw(2, 3), draw(3, 4), draw(2, 4)
    for array in (x, w, y):
        client.give(array)
    places_of = [client.memory[id(array)] for array in (x, w, y)]
    shapes = [array.shape for array in (x, w, y)]
    inputs, outputs = [*zip(places_of, shapes)][:2], [(places_of[2], y.shape)]
    own = client.own.handle
    absent = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6  # bias, scales, aux
    assert frames.call("linear", inputs, outputs, own, transposed=2, absent=absent) is None
    with client.own.current():
        driver.cuMemsetD8Async(places_of[0], 0xFF, 24, own)
    client.own.wait()
    found = np.frombuffer(client.bytes_at(places_of[2], 32), np.float32).reshape(2, 4)
    close(found, np.asarray(x) @ np.asarray(w))
    wrong = [(places_of[0], (3, 2)), inputs[1]]
    said = frames.call("linear", wrong, outputs, own, transposed=2, absent=absent)
    assert said.startswith("lamella INVALID_ARGUMENT: linear: "), said


def a_token_is_written_on_the_stream():
    client, x, token = clients[jax.devices()[1]], draw(2, 3), draw(1)
    y, after = draw(2, 3), draw(1)
    for array in (x, token, y, after):
        client.give(array)
    at = [(client.memory[id(array)], array.shape) for array in (x, token, y, after)]
    assert frames.call("copy_to_group", at[:2], at[2:], client.own.handle) is None
    client.own.wait()
    assert client.bytes_at(at[2][0], 24) == np.asarray(x).tobytes()
    assert client.bytes_at(at[3][0], 4) == bytes(4)


def one_rank():
    train(Schedule.build("interleaved", 1, MICROS, 4), jax.devices()[0])


def in_two_parts():
    """Weights' gradients when the slots of others are in use."""
    train(Schedule.parse(" ".join(IN_TWO.split())), jax.devices()[0], split=True)


IN_TWO = """0F0 1F0 2F0 3F0 0F1 1F1 2F1 3F1 3I1 2I1 1I1 0I1 3I0 2I0 1I0 0I0 0F2 1F2 2F2 3F2 3I2 2I2 1I2
0I2 0W1 3W0 2W2 1W0 0W0 0F3 1F3 2F3 3F3 3W1 3I3 2I3 1I3 0I3 0W2 0W3 1W1 1W2 1W3 2W0 2W1 2W3 3W2 3W3"""


def streams_without_names():
    Client.names_streams = False
    train(Schedule.build("interleaved", 1, MICROS, 4), jax.devices()[0], steps=1)
    Client.names_streams = True


def on_ranks(n, work):
    """Each on a thread. Gives what they raised."""
    name, problems = lamella.Group.new_id(), []

    def run(rank):
        try:
            with lamella.Group.create(name, rank, n, **DEADLINES) as group:
                work(group)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return problems


def two_ranks():
    schedule = Schedule.build("interleaved", 2, MICROS, 2)
    for problem in on_ranks(2, lambda g: train(schedule, jax.devices()[g.rank], group=g)):
        raise problem


def two_ranks_on_one_card():
    schedule = Schedule.build("interleaved", 2, MICROS, 2)
    problems = on_ranks(2, lambda g: train(schedule, jax.devices()[0], group=g))
    assert len(problems) == 2, problems
    for problem in problems:
        assert "ranks 0 and 1 of a group are on GPU 0 in one process" in str(problem), problem


def stages_of_two_devices():
    stages = {i: lj.PipelineStage(hidden, PARAMS[0], device=jax.devices()[i]) for i in range(3)}
    try:
        lj.Pipeline(Schedule.build("interleaved", 1, MICROS, 3), stages, EDGES[:2])
    except lamella.errors.InvalidArgument as problem:
        assert "a rank's are on one device" in str(problem), problem
    else:
        raise AssertionError("they were taken")


def where_parameters_lie():
    """There a stage computes: on a GPU; else on the CPU, wherever those of NumPy are put."""
    there = jax.device_put(PARAMS[0], jax.devices()[1])
    assert lj.PipelineStage(hidden, there).place.device == jax.devices()[1]
    here = jax.tree.map(np.asarray, PARAMS[0])
    assert not lj.PipelineStage(hidden, here).place.described


CASES = [calls_of_operators, a_token_is_written_on_the_stream, one_rank, in_two_parts]
CASES += [streams_without_names, two_ranks, two_ranks_on_one_card, stages_of_two_devices]
for case in [*CASES, where_parameters_lie]:
    try:
        case()
        said = driver.emulated_reports().decode() or "well"
    except Exception:
        said = traceback.format_exc()
    print("case %s: %s" % (case.__name__, said), flush=True)
