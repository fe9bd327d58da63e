"""The projection's arithmetic, and that it says what it is."""

import pytest

from bindings.cli import projection
from bindings.cli.projection import Layer, Link

SLOW = Link("wire", 1e9, "made up")  # 1000 bytes a us
LINEAR = Layer("linear", 1024, 512, 250)


def rows(layer, **times):
    """tp2_c4=8.0: at degree 2, in 4 chunks"""
    found = []
    for key, us in times.items():
        degree, chunks = key[2:].split("_c")
        name = projection.row_name(layer, int(degree), int(chunks))
        found.append({"name": name, "figure": us, "unit": "us"})
    return found


def test_a_sum_travels_twice_but_for_the_own_share():
    whole = 1024 * 250 * 4 / 1000  # us: f32
    for degree, share in ((2, 1.0), (4, 1.5), (8, 1.75)):
        assert projection.travel_time(LINEAR, degree, SLOW) == pytest.approx(share * whole)


@pytest.mark.parametrize("products, travel, chunks, whole", [
    (100, 40, 1, 140),  # nothing to overlap with
    (100, 40, 4, 25 + 3 * 25 + 10),  # products hide all sums but the last
    (40, 100, 4, 10 + 3 * 25 + 25),  # sums hide all products but the first
])
def test_with_overlap_the_longer_of_both_remains(products, travel, chunks, whole):
    assert projection.overlapped_time(products, travel, chunks) == pytest.approx(whole)


def test_the_number_of_chunks_is_the_best_of_those_measured():
    measured = rows(LINEAR, tp1_c1=2000, tp2_c1=1000, tp2_c2=1010, tp2_c4=1400)
    [step] = projection.project(measured, [SLOW])  # 1024 us of travel
    assert (step.degree, step.products, step.alone) == (2, 1000, 2000)
    assert step.travel == pytest.approx(1024) and step.plain == pytest.approx(2024)
    assert step.chunks == 2 and step.overlapped == pytest.approx(505 + 512 + 512)


def test_one_chunk_is_best_where_chunks_cost_more_than_they_hide():
    fast = Link("fast", 1e12, "made up")
    [step] = projection.project(rows(LINEAR, tp1_c1=20, tp2_c1=10, tp2_c2=14), [fast])
    assert step.chunks == 1 and step.overlapped == step.plain


def test_degrees_without_times_are_left_out_and_other_rows_do_no_harm():
    measured = rows(LINEAR, tp1_c1=4000, tp4_c1=1000, tp8_c2=600)
    measured += [{"name": "gemm 8192^3 bf16", "figure": 700.0, "unit": "TFLOP/s"}]
    assert [step.degree for step in projection.project(measured, [SLOW])] == [4]
    assert projection.project([]) == []


@pytest.mark.parametrize("show", [projection.text, projection.markdown])
def test_it_says_that_it_is_a_projection_and_where_its_rates_are_from(show):
    steps = projection.project(rows(LINEAR, tp1_c1=2000, tp2_c1=1000))
    said = show(steps, "NVIDIA H0")
    assert said.startswith("A projection: no two GPUs were timed.") and "NVIDIA H0" in said
    for link, rate in (("NVLink 4", 450), ("PCIe 5 x16", 64), ("400 Gb/s InfiniBand", 50)):
        assert "%s %d GB/s each way (" % (link, rate) in said
        assert sum(link in line for line in said.splitlines()[1:]) == 1
    assert "linear 1024x512x250" in said
