"""One rank of a pipeline: runs the cases named on the command line, and says `rank R ok CASE`.

    ./lamella run -n 3 python torch_pipeline_ranks.py CASE ...     or torchrun

Every rank makes the same whole model from LAMELLA_TEST_SEED and runs it alone; then its own stages
in a pipeline, and compares losses, outputs and gradients.
"""

import copy
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bindings/python")]

import torch  # noqa: E402
import torch.utils.checkpoint  # noqa: E402

import lamella.torch  # noqa: E402
from lamella import errors, library, schedule  # noqa: E402
from lamella.group import grid  # noqa: E402
from lamella.schedule import Schedule  # noqa: E402
from lamella.torch import Pipeline, PipelineStage  # noqa: E402

CASES = {}
F = torch.nn.functional
VOCABULARY, WIDTH, TOKENS = 11, 6, 5
V_SHAPED = ("zbv", "v-half", "v-min", "dualpipev")


def case(*ranks):
    def note(function):
        CASES[function.__name__] = (ranks, function)
        return function

    return note


class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH))

    def forward(self, ids):
        return F.embedding(ids, self.weight)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 9), torch.nn.Linear(9, WIDTH)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Head(torch.nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, VOCABULARY, bias=False)


def model(blocks):
    return torch.nn.Sequential(Embedding(), *[Block() for _ in range(blocks)], Head())


def loss_fn(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def data(batch):
    return torch.randint(VOCABULARY, (2, batch, TOKENS)).unbind()


def cut(whole, stages):
    """The model's layers in `stages` runs; the first ones are longer by one."""
    layers, parts = list(whole), []
    for i in range(stages):
        [(begin, end)] = library.shard(len(layers), i, stages)
        parts.append(torch.nn.Sequential(*layers[begin:end]))
    return parts


def close(*pairs):
    """f32, sums of at most some hundred terms of magnitude 1, in another order."""
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-5)


def compare(group, plan, batch=None, split=True, steps=2, name="", **more):
    """Steps of a pipeline against the unsplit model's, and forwards alone."""
    batch = batch or plan.n_micro
    whole = model(plan.n_stages - 1)
    parts = cut(copy.deepcopy(whole), plan.n_stages)
    mine = [parts[stage] for stage in plan.stages_of(group.rank)]
    stages = [PipelineStage(module, split=split) for module in mine]
    sgd = [torch.optim.SGD(torch.nn.ModuleList(m).parameters(), 0.1) for m in (whole, mine)]
    with Pipeline(stages, plan, group=group, loss_fn=loss_fn, **more) as pipeline:
        for _ in range(steps):
            ids, targets = data(batch)
            expected = loss_fn(whole(ids), targets)
            expected.backward()
            loss = pipeline.step(ids, targets=targets)
            assert (loss is not None) == (plan.n_stages - 1 in plan.stages_of(group.rank))
            if loss is not None:
                close((torch.tensor(loss), expected.detach()))
            others = cut(whole, plan.n_stages)
            for stage, module in zip(plan.stages_of(group.rank), mine):
                for ours, theirs in zip(module.parameters(), others[stage].parameters()):
                    close((ours.grad, theirs.grad))
            for optimizer in sgd:
                optimizer.step()
                optimizer.zero_grad()
        ids, targets = data(batch)
        out, loss = pipeline.eval(ids), pipeline.eval(ids, targets)
        with torch.no_grad():
            if out is not None:
                close((out, whole(ids)), (torch.tensor(loss), loss_fn(whole(ids), targets)))
        assert not any(stage.graphs or stage.deferred for stage in stages)
        report = pipeline.report()
        assert report.n_actions and pipeline.explain()


def plans(group):
    """Every schedule that can be built on these ranks, with 1 and 2 stages per rank."""
    p = group.size
    for name in schedule.names():
        for v in (2,) if name in V_SHAPED else (1, 2):
            try:
                yield name, Schedule.build(name, p, max(2 * p, 3), v)
            except errors.InvalidArgument:
                assert v == 2, name  # linear ones have one stage per rank


@case(1, 2, 3)
def every_schedule(group):
    for name, plan in plans(group):
        for split in (True, False):
            try:
                compare(group, plan, split=split, steps=1)
            except BaseException as error:
                error.add_note("schedule %s, split %s" % (name, split))
                raise


@case(1, 2, 3)
def micro_batches_of_unequal_size(group):
    plan = Schedule.build("1f1b", group.size, 4)
    compare(group, plan, batch=10)


@case(2)
def edges_that_are_given(group):
    plan = Schedule.build("interleaved", 2, 2, 2)
    compare(group, plan, edges=[[((1, TOKENS, WIDTH), torch.float32)]] * 3)
    compare(group, plan, edges=[torch.empty(1, TOKENS, WIDTH, device="meta")] * 3)


@case(2, 3)
def bf16_edges(group):
    """In bf16 a pipeline gives what the same stages give one after the other."""
    plan = Schedule.build("zb-h1", group.size, 4)
    whole = model(group.size - 1).bfloat16()
    parts = cut(copy.deepcopy(whole), group.size)
    ids, targets = data(4)
    loss = 0
    for x, t in zip(ids.split(1), targets.split(1)):
        part = loss_fn(whole(x), t) * 0.25
        part.backward()
        loss += part.item()
    with Pipeline(parts[group.rank], plan, group=group, loss_fn=loss_fn) as pipeline:
        found = pipeline.step(ids, targets)
    assert found is None or found == loss
    alone = cut(whole, group.size)[group.rank]
    for ours, theirs in zip(parts[group.rank].parameters(), alone.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


class Passes(torch.nn.Module):
    """Gives what it gets, what it made of it, a mask, and something to spare."""

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, x, h=None, mask=None, spare=None):
        mask = x > 0 if mask is None else mask.bool()
        h = self.layer(x) if h is None else self.layer(h) * mask
        return x, h, mask.to(torch.uint8), 2 * x if spare is None else spare


class Ends(torch.nn.Module):
    """Gives the loss; what is to spare it uses in the first half of six micro-batches."""

    def __init__(self, width):
        super().__init__()
        self.layer, self.calls = torch.nn.Linear(width, 1), 0

    def forward(self, x, h, mask, spare):
        self.calls += 1
        x = x + h * mask + (spare if self.calls <= 3 else 0)
        return self.layer(x).square().mean()


@case(1, 2, 3)
def several_tensors_per_edge(group):
    """Tensors with and without gradients, used or not; the last module gives the loss; the input
    has a gradient."""
    whole = [Passes(4) for _ in range(group.size)] + [Ends(4)]
    mine = copy.deepcopy(whole)
    x = torch.randn(12, 4)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = sum(whole[-1](*_through(whole[:-1], part)) / 6 for part in theirs.split(2))
    loss.backward()
    last = group.rank == group.size - 1
    stage, alone = mine[group.rank], whole[group.rank]
    if last:
        stage, alone = Both(*mine[-2:]), Both(*whole[-2:])
    edge = [((2, 4), "f32"), ((2, 4), "f32"), ((2, 4), "u8"), ((2, 4), "f32")]
    with Pipeline(stage, "zb-h1", 6, group=group, edges=[edge] * (group.size - 1)) as pipeline:
        found = pipeline.step(ours)
    if last:
        close((torch.tensor(found), loss.detach()))
    close(*[(a.grad, b.grad) for a, b in zip(stage.parameters(), alone.parameters())])
    if group.rank == 0:
        close((ours.grad, theirs.grad))


class Offset(torch.nn.Module):
    """Its weight's gradient is a view of its output's."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x):
        return (x.reshape(WIDTH, 1) + self.weight).reshape(1, WIDTH)


@case(1, 2)
def nothing_is_kept_in_memory_that_is_used_again(group):
    plan = Schedule.build("interleaved", group.size, 4, 2)
    modules = [*[Offset() for _ in range(plan.n_stages - 1)], torch.nn.Identity()]
    mine = [modules[stage] for stage in plan.stages_of(group.rank)]
    x, targets = torch.randn(2, 4, WIDTH).unbind()
    more = dict(loss_fn=lambda y, target: (y * target).sum(), reduction="sum")
    with Pipeline(mine, plan, group=group, **more) as pipeline:
        pipeline.step(x, targets)
        out = pipeline.eval(x)
    for module in mine:
        if isinstance(module, Offset):
            close((module.weight.grad.flatten(), targets.sum(0)))
    if out is not None:
        weights = [module.weight.detach().flatten() for module in modules[:-1]]
        close((out, x + sum(weights)))


def _through(modules, *x):
    for module in modules:
        x = module(*x)
    return x


class Both(torch.nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, *x):
        return self.b(*self.a(*x))


@case(1, 2, 3)
def tied_embedding_and_head(group):
    """Gradients of both ends are summed; they add to what is there, as ever."""
    for name, v in (("1f1b", 1), ("zbv", 2)):
        plan = Schedule.build(name, group.size, 4, v)
        whole = model(plan.n_stages)
        whole[-1].weight = whole[0].weight
        parts = cut(copy.deepcopy(whole), plan.n_stages)
        held = [s for s in plan.stages_of(group.rank) if s in (0, plan.n_stages - 1)]
        weight = None
        if held:
            weight = parts[0][0].weight  # one object where the rank has both ends
        mine = [parts[stage] for stage in plan.stages_of(group.rank)]
        tied = [((0, plan.n_stages - 1), weight)] if plan.n_stages > 1 else []
        with Pipeline(mine, plan, group=group, loss_fn=loss_fn, tied=tied) as pipeline:
            for _ in range(2):
                ids, targets = data(4)
                loss_fn(whole(ids), targets).backward()
                pipeline.step(ids, targets)
        if held:
            close((weight.grad, whole[0].weight.grad))


@case(1)
def compiled_and_checkpointed_modules(group):
    """They keep their backward in one, or are run again for each part."""
    for wrap in (Checkpointed, compiled, compiled_inside):
        plan = Schedule.build("interleaved-zb", 1, 4, 2)
        whole = model(1)
        parts = cut(copy.deepcopy(whole), 2)
        ids, targets = data(4)
        loss_fn(whole(ids), targets).backward()
        stages = [wrap(part) for part in parts]
        with Pipeline(stages, plan, group=group, loss_fn=loss_fn) as pipeline:
            pipeline.step(ids, targets)
        close(*zip([p.grad for part in parts for p in part.parameters()], grads(whole)))


def grads(module):
    return [p.grad for p in module.parameters()]


def compiled(module):
    return torch.compile(module, backend="aot_eager")


def compiled_inside(module):
    module[-1].compile(backend="aot_eager")
    return module


class Checkpointed(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.module, x, use_reentrant=False)


@case(2)
def replicas_sum_their_gradients(group):
    """A pipeline of one rank on each of two replicas, with halves of the batch."""
    whole = model(1)
    mine = copy.deepcopy(whole)
    ids, targets = data(8)
    loss_fn(whole(ids), targets).backward()

    def reduce_grad(module):
        for p in module.parameters():
            p.grad = torch.ops.lamella.all_reduce(p.grad, group=group.handle) / group.size

    half = slice(4 * group.rank, 4 * group.rank + 4)
    stage = PipelineStage(mine, reduce_grad=reduce_grad)
    with Pipeline(stage, "1f1b", 4, loss_fn=loss_fn) as pipeline:
        pipeline.step(ids[half], targets[half])
    for ours, theirs in zip(mine.parameters(), whole.parameters()):
        close((ours.grad, theirs.grad))


class SplitBlock(torch.nn.Module):
    """Block with its layers split over a group."""

    def __init__(self, group):
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = lamella.torch.ColumnParallelLinear(WIDTH, 9, group=group, act="gelu")
        self.down = lamella.torch.RowParallelLinear(9, WIDTH, group=group)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)))


@case(4)
def tensor_and_pipeline_parallel(world):
    """tp x pp = 2 x 2, column and row split layers in the stages."""
    tensor, pipe = grid(world, 2, 2)
    for name, v in (("1f1b", 1), ("zb-h1", 1), ("zbv", 2), ("interleaved", 2)):
        plan = Schedule.build(name, 2, 4, v)
        whole = model(plan.n_stages)
        torch.manual_seed(torch.initial_seed())
        layers = list(copy.deepcopy(whole))
        for i, layer in enumerate(layers):
            if isinstance(layer, Block):
                layers[i] = SplitBlock(tensor)
                layers[i].load_state_dict(layer.state_dict())
        mine = [cut(layers, plan.n_stages)[stage] for stage in plan.stages_of(pipe.rank)]
        torch.manual_seed(int(os.environ["LAMELLA_TEST_SEED"]) + 1)  # parts drew different numbers
        sgd = [torch.optim.SGD(torch.nn.ModuleList(m).parameters(), 0.1) for m in (whole, mine)]
        with Pipeline(mine, plan, group=pipe, tensor=tensor, loss_fn=loss_fn) as pipeline:
            for _ in range(2):
                ids, targets = data(4)
                expected = loss_fn(whole(ids), targets)
                expected.backward()
                loss = pipeline.step(ids, targets)
                if loss is not None:
                    close((torch.tensor(loss), expected.detach()))
                for optimizer in sgd:
                    optimizer.step()
                    optimizer.zero_grad()
        others = [cut(whole, plan.n_stages)[stage] for stage in plan.stages_of(pipe.rank)]
        for ours, theirs in zip(mine, others):
            state = lamella.torch.whole_state_dict(ours)
            close(*[(state[n], t) for n, t in theirs.state_dict().items()])
    pipe.close()
    tensor.close()


# -- what is wrong is heard by all; each of these ends the world, so it has groups of its own --


def own_group(group):
    ids = [lamella.Group.new_id() if group.rank == 0 else bytes(128)]
    box = torch.tensor(list(ids[0]), dtype=torch.uint8)
    box = torch.ops.lamella.broadcast(box, group=group.handle, root=0)
    return lamella.Group.create(bytes(box.tolist()), group.rank, group.size, deadline_ms=20000)


def fails(group, kind, text, inputs=True, targets=True, whole=None, **more):
    """What every rank hears of a wrong step."""
    own = own_group(group)
    mine = cut(whole or model(1), group.size)[group.rank]
    ids, labels = data(4)
    with own, Pipeline(mine, "1f1b", 4, group=own, loss_fn=loss_fn, **more) as pipeline:
        try:
            pipeline.step(ids if inputs is True else inputs, labels if targets is True else targets)
            pipeline.step(ids, labels)
        except kind as error:
            said = "%s %s" % (error, getattr(error, "__notes__", ""))
            assert text in said, said
            return
    raise AssertionError("nothing was said")


class Boom(torch.nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at, self.calls, self.layer = at, 0, torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.calls += 1
        if self.calls > self.at:
            raise ZeroDivisionError("no more")
        return self.layer(x)


@case(2)
def a_failing_module_is_named(group):
    whole = torch.nn.Sequential(Embedding(), Block(), Boom(2), Head())
    kind = ZeroDivisionError if group.rank == 1 else errors.Error
    fails(group, kind, "stage 1, forward, micro-batch 2", whole=whole)


@case(2)
def wrong_data_is_named(group):
    fails(group, ValueError, "inputs: None", inputs=None)
    fails(group, ValueError, "expected tensors with at least 4 rows", inputs=torch.zeros(3))
    fails(group, ValueError, "the edge has at most", edges=[[((1, TOKENS, WIDTH - 1), "f32")]])
    fails(group, RuntimeError, "targets: None", targets=None)
    fails(group, RuntimeError, "targets: torch.int64[2], expected", targets=torch.zeros(2).long())


class Guesses(torch.nn.Module):
    def forward(self, ids):
        return torch.zeros(int(ids.sum()), 1)


@case(2)
def a_shape_that_depends_on_data_is_asked_for(group):
    fails(group, ValueError, "say what crosses the edges", whole=[Guesses(), Head()])


@case(2)
def a_wrong_number_of_stages_is_refused(group):
    for stages in ([], [Head(), Head()], {1 - group.rank: Head()}):
        try:
            Pipeline(stages, Schedule.build("1f1b", 2, 2), group=group)
        except errors.InvalidArgument as error:
            assert "rank %d" % group.rank in str(error)
        else:
            raise AssertionError(stages)


def main():
    torch.set_num_threads(1)
    group = lamella.torch.group(deadline_ms=20000, first_deadline_ms=120000)
    failed = 0
    for name in sys.argv[1:]:
        torch.manual_seed(int(os.environ.get("LAMELLA_TEST_SEED", 1)))
        try:
            CASES[name][1](group)
            said = "rank %d ok %s\n" % (group.rank, name)
        except BaseException:
            failed = 1
            said = "rank %d FAIL %s\n%s" % (group.rank, name, traceback.format_exc())
        os.write(1, said.encode())  # whole lines, whoever else writes
        if failed:
            break
    os._exit(failed)


if __name__ == "__main__":
    main()
