"""Ranks that are threads of this process, and stages in NumPy for them.

A model is a row of square layers y = tanh(x w), one per stage; its loss is the sum of y * y / 2
over the micro-batches.
"""

import random
import threading

import numpy as np

from lamella import Group
from lamella.pipeline import Stage

WIDTH = 5
ROWS = 3


def run_ranks(n, function):
    """function(group) on n threads, rank by rank; what each gave, or the exception it ended by."""
    id, found = Group.new_id(), [None] * n

    def run(rank):
        try:
            with Group.create(id, rank, n, deadline_ms=20000, first_deadline_ms=60000) as group:
                found[rank] = function(group)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(1, n)]
    for thread in threads:
        thread.start()
    run(0)  # on the main thread, where Python handles signals
    for thread in threads:
        thread.join()
    return found


def results(found):
    for error in found:
        if isinstance(error, BaseException):
            raise error
    return found


class Layer(Stage):
    """One stage: `log` has what was called, in order."""

    def __init__(self, w, x=None, last=False):
        self.w, self.x, self.last = w, x, last  # x: the first stage's data, by micro-batch
        self.dw = np.zeros_like(w)
        self.saved, self.log = {}, []

    def forward(self, io):
        x = io.inputs[0].numpy().copy() if io.inputs else self.x[io.micro]
        y = np.tanh(x @ self.w)
        self.saved[io.micro] = [x, y, None]
        self.log.append(("F", io.micro))
        if self.last:
            io.add_loss(float((y.astype("f8") ** 2).sum() / 2))
        else:
            io.outputs[0].numpy()[:] = y

    def _dz(self, io):
        x, y, _ = self.saved[io.micro]
        dy = y if self.last else io.inputs[0].numpy()
        return dy * (1 - y * y)

    def _give(self, io, dz):
        if io.outputs:
            io.outputs[0].numpy()[:] = dz @ self.w.T

    def backward(self, io):
        dz = self._dz(io)
        self._give(io, dz)
        self.dw += self.saved.pop(io.micro)[0].T @ dz
        self.log.append(("B", io.micro))


class SplitLayer(Layer):
    def backward_input(self, io):
        self.saved[io.micro][2] = dz = self._dz(io)
        self._give(io, dz)
        self.log.append(("I", io.micro))

    def backward_weight(self, io):
        x, _, dz = self.saved.pop(io.micro)
        self.dw += x.T @ dz
        self.log.append(("W", io.micro))


def problem(stages, micro_batches, seed=None):
    """(weights, data, loss, gradients) in one process."""
    seed = random.randrange(2**31) if seed is None else seed
    print("seed", seed)
    rng = np.random.default_rng(seed)
    ws = [rng.standard_normal((WIDTH, WIDTH)).astype("f4") for _ in range(stages)]
    xs = [rng.standard_normal((ROWS, WIDTH)).astype("f4") for _ in range(micro_batches)]
    layers = [Layer(w, xs, last=i == stages - 1) for i, w in enumerate(ws)]
    loss = 0
    for x in xs:
        hs = [x]
        for w in ws:
            hs.append(np.tanh(hs[-1] @ w))
        loss += float((hs[-1].astype("f8") ** 2).sum() / 2)
        dy = hs[-1]
        for layer, x, y in reversed(list(zip(layers, hs, hs[1:]))):
            dz = dy * (1 - y * y)
            layer.dw += x.T @ dz
            dy = dz @ layer.w.T
    return ws, xs, loss, [layer.dw for layer in layers]


def edges(schedule):
    return [[((ROWS, WIDTH), "f32")]] * (schedule.n_stages - 1)


def layers_of(schedule, rank, ws, xs, kind=SplitLayer):
    last = schedule.n_stages - 1
    return {s: kind(ws[s], xs, s == last) for s in schedule.stages_of(rank)}
