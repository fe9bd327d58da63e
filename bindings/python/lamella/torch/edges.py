"""What crosses the edges of a pipeline: found by running its stages on tensors without data.

Invariant: all ranks end with the same edges, or all raise what one of them met.
Leaves real data to stage.py.
"""

import itertools
import json

import torch

from lamella import errors
from lamella.pipeline import dtype_code
from lamella.torch import dtypes
from lamella.torch.stage import as_tuple

try:  # private, so not certain to stay
    from torch._subclasses.fake_tensor import FakeTensorMode
except ImportError:
    FakeTensorMode = None


def find(plan, group, modules, inputs):
    """[[(shape, code), ...] of each edge]. modules: {stage: module} of this rank; inputs(): the
    first stage's first micro-batch. Collective."""
    found = []
    for stage in range(plan.n_stages - 1):
        before = found[-1] if found else None
        module = modules.get(stage)
        found.append(
            share(group, plan.rank_of(stage), lambda: run_fake(stage, module, before, inputs))
        )
    return [[(tuple(shape), code) for shape, code in edge] for edge in found]


def share(group, root, make):
    """What make() gives on rank `root`, on all ranks; there it is called, and may raise."""
    if group is None or group.size == 1:
        return make()
    said, raised = None, None
    if group.rank == root:
        try:
            said = {"is": make()}
        except Exception as error:  # on this rank it is raised as it is
            raised, said = error, {"error": str(error)[:1000]}
    said = tell(group, root, said)
    if raised:
        raise raised
    if "error" in said:
        raise errors.InvalidArgument("rank %d: %s" % (root, said["error"]), 3)
    return said["is"]


def tell(group, root, said):
    """What rank `root` says, anything that JSON has, on all ranks. Collective."""
    more = dict(group=group.handle, root=root)
    data = json.dumps(said).encode() if group.rank == root else b""
    length = int(torch.ops.lamella.broadcast(torch.tensor([len(data)], dtype=torch.int32), **more))
    message = torch.frombuffer(bytearray(data or length), dtype=torch.uint8)
    return json.loads(bytes(torch.ops.lamella.broadcast(message, **more).tolist()))


def run_fake(stage, module, before, inputs):
    """The shapes and dtypes that a stage gives."""
    if FakeTensorMode is None:
        raise errors.Unimplemented(
            "this torch has no tensors without data that Lamella knows: say what crosses the "
            "edges with edges="
        )
    given = None if before is not None else inputs()
    eager = torch.compiler.set_stance("force_eager")
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), eager:
        if before is not None:
            where = device_of(module)
            given = [torch.empty(s, dtype=dtypes.CODED[code], device=where) for s, code in before]
        else:
            given = [fake.from_tensor(x) if torch.is_tensor(x) else x for x in given]
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        state = {name: fake.from_tensor(t) for name, t in state.items()}
        try:
            outputs = as_tuple(torch.func.functional_call(module, state, tuple(given)))
        except Exception as error:
            raise errors.InvalidArgument(
                "what stage %d gives is not known: on tensors without data it fails with %s: %s; "
                "say what crosses the edges with edges=" % (stage, type(error).__name__, error),
                3,
            ) from error
    return [describe(stage, y) for y in outputs]


def device_of(*modules):
    """Of their first weight or buffer; the CPU where they have none."""
    tensors = (itertools.chain(module.parameters(), module.buffers()) for module in modules)
    first = next(itertools.chain.from_iterable(tensors), None)
    return torch.device("cpu") if first is None else first.device


def describe(stage, y):
    if not torch.is_tensor(y) or y.dtype not in dtypes.CODES:
        what = y.dtype if torch.is_tensor(y) else type(y).__name__
        raise errors.InvalidArgument("stage %d gives %s, expected tensors" % (stage, what), 3)
    return [list(y.shape), dtypes.CODES[y.dtype]]


def read(edges):
    """Edges as users give them: per edge a tensor, or a list of tensors and (shape, dtype)."""
    return [[_read(t) for t in (edge if isinstance(edge, list) else [edge])] for edge in edges]


def _read(tensor):
    if torch.is_tensor(tensor):
        return tuple(tensor.shape), dtypes.CODES[tensor.dtype]
    shape, dtype = tensor
    return tuple(shape), dtypes.CODES.get(dtype) or dtype_code(dtype)
