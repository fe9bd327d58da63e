"""Pipelines of Python stages: numbers, failures, wrong descriptions. Ranks are threads."""

import _thread
import gc
import itertools
import json

import numpy as np
import pytest

from lamella import errors, group, schedule
from lamella.pipeline import Pipeline, Schedule, Stage, Tied
from thread_ranks import ROWS, WIDTH, Layer, SplitLayer, edges, layers_of, problem, results, run_ranks

V_SHAPED = ("zbv", "v-half", "v-min", "dualpipev")
LINEAR = ("layerwise", "gpipe", "1f1b", "zb-h1", "zb-h2")


def every_schedule():
    """(name, ranks, stages per rank, micro-batches), each that can be built."""
    for name, p, v in itertools.product([*schedule.names(), "auto"], (1, 2, 3), (1, 2)):
        if v == 1 and name in V_SHAPED or v == 2 and name in LINEAR:
            continue
        yield name, p, v, 2 * p if name == "dualpipev" else p + 1


def step(plan, ws, xs, kind, steps=1):
    """A function of a group: the loss, and (stage, layer) of its rank, after `steps` steps."""

    def run(group):
        layers = layers_of(plan, group.rank, ws, xs, kind)
        with Pipeline(plan, layers, edges(plan), group=group) as pipeline:
            losses = [pipeline.run(i) for i in range(steps)]
            return losses, layers, pipeline.report()

    return run


@pytest.mark.parametrize("kind", [Layer, SplitLayer])
def test_every_schedule_gives_one_processs_numbers(kind):
    for name, p, v, m in every_schedule():
        plan = Schedule.build(name, p, m, v)
        ws, xs, loss, gradients = problem(plan.n_stages, m)
        found = results(run_ranks(p, step(plan, ws, xs, kind)))
        for rank, (losses, layers, _) in enumerate(found):
            what = "%s, p %d, v %d, rank %d" % (name, p, v, rank)
            expected = loss if plan.n_stages - 1 in layers else 0
            np.testing.assert_allclose(losses, [expected], rtol=1e-5, err_msg=what)
            for number, layer in layers.items():
                assert not layer.saved, what
                np.testing.assert_array_equal(layer.dw, gradients[number], err_msg=what)


def test_a_split_backward_follows_the_schedules_list():
    plan = Schedule.build("zb-h1", 2, 4)
    ws, xs, *_ = problem(2, 4)
    found = results(run_ranks(2, step(plan, ws, xs, SplitLayer)))
    for rank, (_, layers, _) in enumerate(found):
        line = plan.text().splitlines()[rank].split(": ")[1]
        assert ["%d%s%d" % (rank, *a) for a in layers[rank].log] == line.split()


def test_steps_follow_each_other_and_leave_nothing_behind():
    plan = Schedule.build("1f1b", 1, 2, 1)
    ws, xs, loss, _ = problem(1, 2)
    layers = {0: Layer(ws[0], xs, last=True)}
    with Pipeline(plan, layers, []) as pipeline:

        def objects(steps):
            for i in range(steps):
                assert abs(pipeline.run(i) - loss) < 1e-4 * loss
            layers[0].log.clear()
            gc.collect()
            return len(gc.get_objects())

        assert abs(objects(10) - objects(200)) < 100  # others in this process come and go


def test_a_report_is_of_the_last_step_and_draws_it():
    plan = Schedule.build("1f1b", 2, 3)
    ws, xs, *_ = problem(2, 3)
    for rank, (_, _, report) in enumerate(results(run_ranks(2, step(plan, ws, xs, Layer, 2)))):
        worked = [e for e in report.events if e.kind in ("F", "B")]
        assert sorted((e.kind, e.micro) for e in worked) == [(k, i) for k in "BF" for i in range(3)]
        assert all(e.rank == e.stage == rank and e.start <= e.end for e in worked)
        assert 0 < report.busy <= report.step_time and report.n_actions == 6
        assert "<svg" in report.draw("svg") and '"traceEvents"' in report.draw("perfetto")
        assert report.draw().strip()
        assert report.paths == {(0, "F"): "shm", (0, "I"): "shm"}
        assert '"labels":"edge 0 activations: shm; edge 0 gradients: shm"' in report.draw("perfetto")


def test_events_of_all_ranks_show_messages_and_what_carried_them():
    plan = Schedule.build("1f1b", 2, 3)
    ws, xs, *_ = problem(2, 3)
    reports = [report for *_, report in results(run_ranks(2, step(plan, ws, xs, Layer)))]
    events = [event for report in reports for event in report.events]
    drawn = schedule.draw(events, "perfetto", reports[0].paths)
    flows = [e for e in json.loads(drawn)["traceEvents"] if e["ph"] == "s"]
    assert sorted((f["name"], f["cat"], f["pid"]) for f in flows) == (
        [("shm", "activation", 0)] * 3 + [("shm", "gradient", 1)] * 3
    )
    assert "lines: messages, by shm" in schedule.draw(events, "svg", reports[0].paths)
    assert '"ph":"s"' not in schedule.draw(events, "perfetto")


def test_explain_tells_of_every_rank():
    plan = Schedule.build("1f1b", 2, 3)
    ws, xs, *_ = problem(2, 3)

    def explained(group):
        layers = layers_of(plan, group.rank, ws, xs)
        with Pipeline(plan, layers, edges(plan), group=group) as pipeline:
            pipeline.run()
            return pipeline.explained(), pipeline.explain()

    (first, text), second = results(run_ranks(2, explained))
    assert (first.ranks, text) == (second[0].ranks, second[1]) and text == first.text
    for rank in first.ranks:
        idle = rank.warm_up + rank.drain + rank.waiting + rank.imbalance
        assert rank.work > 0 and abs(rank.work + idle + rank.other - first.step) < 1


def test_without_backward_functions_forwards_run_alone():
    plan = Schedule.build("1f1b", 2, 3)
    ws, xs, loss, _ = problem(2, 3)

    class Forward(Stage):
        def __init__(self, layer):
            self.forward = layer.forward

    def run(group):
        stages = {s: Forward(l) for s, l in layers_of(plan, group.rank, ws, xs).items()}
        with Pipeline(plan, stages, edges(plan), group=group, forward_only=True) as pipeline:
            return pipeline.run()

    np.testing.assert_allclose(results(run_ranks(2, run)), [0, loss], rtol=1e-5)


def test_tied_weights_gradients_are_summed_over_their_ranks():
    plan = Schedule.build("1f1b", 3, 2)
    ws, xs, _, gradients = problem(3, 2)

    def run(group):
        layers = layers_of(plan, group.rank, ws, xs)
        own = layers[group.rank].dw if group.rank != 1 else None
        tied = Tied((0, 2), (WIDTH, WIDTH), "f32", own.ctypes.data if own is not None else 0)
        with Pipeline(plan, layers, edges(plan), group=group, tied=[tied]) as pipeline:
            pipeline.run()
        return layers[group.rank].dw

    found = results(run_ranks(3, run))
    np.testing.assert_array_equal(found[1], gradients[1])
    for rank in (0, 2):
        np.testing.assert_array_equal(found[rank], gradients[0] + gradients[2])


def test_a_stage_lowers_its_outputs_shape():
    plan = Schedule.build("gpipe", 2, 3)
    seen = []

    class First(Stage):
        def forward(self, io):
            io.outputs[0].shape = (io.micro + 1, WIDTH)
            io.outputs[0].numpy()[:] = io.micro

    class Last(Stage):
        def forward(self, io):
            seen.append(io.inputs[0].numpy().copy())

    def run(group):
        stages = {group.rank: [First, Last][group.rank]()}
        with Pipeline(plan, stages, edges(plan), group=group, forward_only=True) as pipeline:
            pipeline.run()

    results(run_ranks(2, run))
    for i, x in enumerate(seen):
        np.testing.assert_array_equal(x, np.full((i + 1, WIDTH), i, "f4"))


# -- failures --


class Boom(Exception):
    pass


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("method", ["forward", "backward_input", "backward_weight"])
def test_a_failing_stage_is_raised_again_there_and_heard_by_all(method, failing):
    plan = Schedule.build("zb-h1", 3, 4)
    ws, xs, *_ = problem(3, 4)
    boom = Boom("no more")

    def run(group):
        layers = layers_of(plan, group.rank, ws, xs)
        if group.rank == failing:
            inner = getattr(layers[failing], method)

            def fail(io):
                if io.micro == 2:
                    raise boom
                inner(io)

            setattr(layers[failing], method, fail)
        with Pipeline(plan, layers, edges(plan), group=group) as pipeline:
            try:
                pipeline.run(7)
            except errors.Error:
                pass  # or it had nothing left to wait for, and hears of it in the next step
            except Boom as error:
                assert group.rank == failing and error is boom
            with pytest.raises(errors.Error) as heard:
                pipeline.run(8)
            return str(heard.value)

    for rank, text in enumerate(results(run_ranks(3, run))):
        assert "rank %d" % failing in text and "stage %d" % failing in text, text
        assert "micro-batch 2" in text, text
        assert rank == failing or method + ", micro-batch 2: Boom: no more" in text, text


def test_a_failure_without_a_group_ends_one_step_only():
    plan = Schedule.build("1f1b", 1, 2)
    ws, xs, loss, _ = problem(1, 2)
    layer = Layer(ws[0], xs, last=True)
    with Pipeline(plan, {0: layer}, []) as pipeline:
        good, layer.x = layer.x, {}
        with pytest.raises(KeyError) as raised:
            pipeline.run()
        assert raised.value.args == (0,)
        layer.x = good
        assert abs(pipeline.run() - loss) < 1e-4 * loss


class Odd(Exception):
    """Another package's, whose status is none of ours."""

    def __init__(self, status):
        self.status = status

    def __str__(self):
        return "\ud800" if self.status == 503 else 1 / 0


@pytest.mark.parametrize("status", [503, "gone"])
def test_any_exception_of_a_stage_is_a_failure_of_the_step(status):
    odd, plan = Odd(status), Schedule.build("1f1b", 2, 2)
    ws, xs, *_ = problem(2, 2)

    def run(group):
        layers = layers_of(plan, group.rank, ws, xs)
        if group.rank == 0:

            def fail(io):
                raise odd

            layers[0].forward = fail
        with Pipeline(plan, layers, edges(plan), group=group) as pipeline:
            pipeline.run()

    first, second = run_ranks(2, run)
    assert first is odd
    assert isinstance(second, errors.Error) and second.status in (13, 9 | 5 << 8), second
    assert "Odd: " in str(second)


def test_an_interrupt_in_a_stage_comes_back():
    class Interrupted(Stage):
        def forward(self, io):
            raise KeyboardInterrupt

        backward = forward

    with Pipeline(Schedule.build("1f1b", 1, 2), {0: Interrupted()}, []) as pipeline:
        with pytest.raises(KeyboardInterrupt):
            pipeline.run()


def test_an_interrupt_while_the_library_waits_is_not_lost():
    """Rank 1 interrupts rank 0, the main thread, which waits for its second message: it sent what
    let rank 1 go on."""
    plan = Schedule.parse("rank 0: 1F0 1B0 1F1 1B1\nrank 1: 0F0 0B0 0F1 0B1\n")
    called = []

    class Source(Stage):
        def forward(self, io):
            io.outputs[0].numpy()[:] = 0
            if io.micro == 1:
                _thread.interrupt_main()

        def backward(self, io):
            pass

    class Sink(Stage):
        def forward(self, io):
            called.append(io.micro)

        backward = forward

    def run(group):
        stages = {1: Sink()} if group.rank == 0 else {0: Source()}
        with Pipeline(plan, stages, edges(plan), group=group) as pipeline:
            pipeline.run()

    first, second = run_ranks(2, run)
    assert isinstance(first, KeyboardInterrupt) and isinstance(second, errors.Interrupted)
    assert called == [0, 0]


def test_a_stage_method_cannot_close_its_pipeline():
    class Closes(Stage):
        def forward(self, io):
            pipeline.close()

        backward = forward

    with Pipeline(Schedule.build("1f1b", 1, 1), {0: Closes()}, []) as pipeline:
        with pytest.raises(errors.FailedPrecondition, match="is running"):
            pipeline.run()
    with pytest.raises(errors.InvalidArgument):
        pipeline.run()
    pipeline.close()


def test_a_group_ends_after_its_pipelines():
    plan = Schedule.build("1f1b", 2, 2)
    ws, xs, *_ = problem(2, 2)

    def run(group):
        pipeline = Pipeline(plan, layers_of(plan, group.rank, ws, xs), edges(plan), group=group)
        pipeline.run()
        group.close()
        return pipeline.pointer

    assert results(run_ranks(2, run)) == [None, None]


# -- wrong descriptions --


def build(plan, stages=None, edge=None, **more):
    ws, xs, *_ = problem(plan.n_stages, plan.n_micro)
    stages = layers_of(plan, 0, ws, xs) if stages is None else stages
    return Pipeline(plan, stages, edges(plan) if edge is None else edge, **more)


WRONG = [
    (dict(edge=[]), "0 edges, expected 1"),
    (dict(edge=[[((2, 3), "f33")]]), r"edges\[0\]\[0\] is \(\(2, 3\), 'f33'\)"),
    (dict(edge=[[((2,) * 9, "f32")]]), r"edges\[0\]\[0\].* 9 dimensions"),
    (dict(edge=[[((2, -3), "f32")]]), r"edges\[0\], tensor 0: a dimension is -3"),
    (dict(edge=[[]]), r"edges\[0\] has 0 tensors"),
    (dict(stages={}), "rank 0 was given 0 stages, the schedule puts 2 on it"),
    (dict(stages={0: Stage(), 2: Stage()}), r"given \[0, 2\], the schedule puts \[0, 1\]"),
    (dict(stages={0: Stage(), 1: Stage()}), "stage 0 has no forward function"),
    (dict(codec="f7"), "codec is 'f7', expected one of none, bf16"),
    (dict(tied=[Tied((0, 0), (2,), "f32", 1)]), r"tied\[0\].stages\[1\] is 0"),
]


@pytest.mark.parametrize("given, message", WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_description_is_refused_by_its_place(given, message):
    with pytest.raises(errors.InvalidArgument, match=message):
        build(Schedule.build("interleaved", 1, 2, 2), **given)


def test_ranks_that_differ_name_each_other():
    plan = Schedule.build("1f1b", 2, 2)
    ws, xs, *_ = problem(2, 2)

    def run(group):
        edge = [[((ROWS, WIDTH + group.rank), "f32")]]
        Pipeline(plan, layers_of(plan, group.rank, ws, xs), edge, group=group)

    for error in run_ranks(2, run):
        assert isinstance(error, errors.Error) and "f32[3,6]" in str(error), error


def test_a_shape_of_other_rank_or_too_large_is_refused():
    class Wrong(Stage):
        def __init__(self, shape):
            self.shape = shape

        def forward(self, io):
            if io.outputs:
                io.outputs[0].shape = self.shape

    plan = Schedule.build("interleaved", 1, 1, 2)
    for shape, message in (((1,), "1 dimensions, expected 2"), ((ROWS + 1, 1), "expected at most")):
        stages = {0: Wrong(shape), 1: Wrong(shape)}
        with Pipeline(plan, stages, edges(plan), forward_only=True) as pipeline:
            with pytest.raises(errors.InvalidArgument, match=message):
                pipeline.run()


# -- groups --


@pytest.mark.parametrize("id", [b"", b"cut off", bytes(129), "x" * 128, 128, None])
def test_an_id_that_is_none_is_refused(id):
    with pytest.raises(errors.InvalidArgument, match="expected the 128 bytes"):
        group.Group.create(id, 0, 1)


def test_a_grid_has_tensor_groups_of_adjacent_ranks():
    def run(world):
        tensor, pipe = group.grid(world, 2, 2)
        with tensor, pipe:
            return (tensor.rank, tensor.size), (pipe.rank, pipe.size)

    found = results(run_ranks(8, run))
    assert found == [((r % 2, 2), (r // 2 % 2, 2)) for r in range(8)]


def test_a_grid_that_does_not_divide_is_refused():
    def run(world):
        with pytest.raises(errors.InvalidArgument, match="tp 2 x pp 1, of 3 ranks"):
            group.grid(world, 2, 1)

    results(run_ranks(3, run))
