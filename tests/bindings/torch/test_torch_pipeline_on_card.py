"""Pipelines whose modules lie on a GPU, as far as this can be seen without one: what the library is told,
on which stream a step's work is queued, and how its memory becomes a tensor. The rest is tests/gpu's."""

import contextlib
import ctypes

import pytest
import torch

import lamella
import lamella.torch
from lamella import pipeline, pipeline_abi
from lamella.torch import edges, stage

SHAPE = (ctypes.c_int64 * 2)(3, 4)


@pytest.fixture
def said(monkeypatch):
    """What happens, in order; streams are their names."""
    log = []

    class Stream:
        cuda_stream = 77

        def __init__(self, name):
            self.name = name if isinstance(name, str) else "own on %s" % name

        def wait_stream(self, other):
            log.append("%s waits for %s" % (self.name, other.name))

    @contextlib.contextmanager
    def current(stream):
        log.append("now " + stream.name)
        yield
        log.append("no more " + stream.name)

    class Native:
        pointer = 1

        def __init__(self, *given, **named):
            log.append({name: named[name] for name in ("device", "stream")})

        def run(self, step):
            log.append("run")
            if step == 1:
                raise ValueError("a stage's")
            return 2.5

        def close(self):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("the caller's"))
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(edges, "device_of", lambda *modules: torch.device("cuda:1"))
    monkeypatch.setattr(pipeline, "Pipeline", Native)
    return log


def test_a_step_is_queued_between_what_the_caller_queues(said):
    with lamella.torch.Pipeline(torch.nn.Linear(2, 2), "1f1b", 2, edges=[]) as made:
        assert made.step(torch.zeros(4, 2)) == 2.5
        own = "own on cuda:1"
        around = [own + " waits for the caller's", "now " + own, "run"]
        after = ["no more " + own, "the caller's waits for " + own]
        assert said == [{"device": (2, 1), "stream": 77}, *around, *after]
        said.clear()
        with pytest.raises(ValueError, match="a stage's"):
            made.step(torch.zeros(4, 2))
        assert said == [*around, "the caller's waits for " + own]


def test_a_view_of_a_gpus_memory_is_given_to_torch_by_its_address():
    tensor = pipeline_abi.Tensor(data=4096, device_type=2, device_id=1, ndim=2, byte_offset=64)
    tensor.shape = ctypes.cast(SHAPE, ctypes.POINTER(ctypes.c_int64))
    tensor.dtype = pipeline_abi.Dtype(4, 16, 1)
    view = pipeline.View(tensor)
    assert view.device == (2, 1) and view.nbytes == 24
    about = stage.OnCard(view).__cuda_array_interface__
    assert about == {"shape": (24,), "typestr": "|u1", "data": (4160, False), "version": 2}
    with pytest.raises(lamella.errors.FailedPrecondition, match="a view of device 2:1"):
        view.memory()
