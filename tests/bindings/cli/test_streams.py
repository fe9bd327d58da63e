"""Pictures of traces: a lane for each stream, transfers apart, and how much of them is beside products."""

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from bindings.cli import bazel, headers, streams
from bindings.cli.common import ROOT, Problem

PROGRAM = "//tests/distributed/peers:streams_test"
SVG = "{http://www.w3.org/2000/svg}"


def event(name, card, stream, begin, end, cat="kernel"):
    about = {"device": card, "stream": stream}
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin, "args": about}


def trace(*events):
    return json.dumps({"traceEvents": [*events, {"ph": "M", "name": "process_name", "args": {}}]})


def test_what_is_beside_what_is_counted_once_and_by_card():
    spans = streams.read(trace(
        event("gemm", 0, 7, 0, 100), event("gemm", 0, 7, 100, 150), event("gemm", 1, 7, 0, 1000),
        event("ncclDevKernel_AllReduce", 0, 9, 90, 190), event("Memcpy PtoP", 0, 11, 140, 200, "gpu_memcpy"),
        event("aten::mm", 0, 7, 0, 500, "cpu_op")))
    assert streams.beside(spans) == {0: (110, 60), 1: (0, 0)}


@pytest.mark.parametrize("name, is_transfer", [
    ("void sum_lanes(sum_call)", True), ("peer_gather", True), ("ncclDevKernel_SendRecv", True),
    ("Memcpy DtoD (Device -> Device)", True), ("nvjet_hsh_256x128", False), ("norm_rows<float>", False)])
def test_transfers_are_told_by_their_names(name, is_transfer):
    assert streams.Span(0, 0, name, 0, 1).is_transfer == is_transfer


def boxes(text):
    """[(class, title)] of a picture that is well formed."""
    root = ElementTree.fromstring(text)
    found = [(r.get("class"), r.findtext(SVG + "title")) for r in root.iter(SVG + "rect")]
    return root, [box for box in found if box[1]]


def test_a_picture_has_a_lane_for_each_stream_and_a_box_for_each_span():
    spans = streams.read(trace(event("a<b>&c", 0, 7, 5, 10), event("nccl", 0, 9, 8, 13)))
    root, found = boxes(streams.svg(spans, "of <two> kernels"))
    said = [text.text for text in root.iter(SVG + "text")]
    assert found == [("c", "a<b>&c: 0 us to 5 us"), ("x", "nccl: 3 us to 8 us")]
    assert [t for t in said if t.startswith("card")] == ["card 0, stream 7", "card 0, stream 9"]
    assert "of <two> kernels" in said and "transfers 5 us, 40 % beside work" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": [{"ph": "X", "cat": "kernel"}]}'])
def test_what_is_no_trace_is_one_line(text):
    with pytest.raises(Problem, match="a trace: "):
        streams.read(text)


def test_an_empty_trace_makes_no_picture():
    with pytest.raises(Problem, match="nothing in it ran on a GPU"):
        streams.svg(streams.read(trace()), "")


@pytest.mark.skipif(not headers.all_there(), reason="no headers of CUDA and cuBLAS here")
def test_a_layer_on_the_stand_in_sums_a_chunk_beside_the_next_ones_product(tmp_path):
    """Two ranks, a card each: as emulated, so what is beside what, and no times of a GPU."""
    assert bazel.build([PROGRAM]) == 0
    program = ROOT / "bazel-bin" / PROGRAM.lstrip("/").replace(":", "/")
    subprocess.run([program], check=True, env=dict(os.environ, TEST_UNDECLARED_OUTPUTS_DIR=str(tmp_path)),
                   stdout=subprocess.DEVNULL, timeout=120)
    spans = streams.read((tmp_path / "trace.json").read_text())
    _, found = boxes(streams.svg(spans, "a layer in 4 chunks"))
    assert len(found) == len(spans)
    assert {(s.card, s.is_transfer) for s in spans} == {(c, t) for c in (0, 1) for t in (False, True)}
    assert any(hidden > 0 for _, hidden in streams.beside(spans).values())
