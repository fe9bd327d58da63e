"""A picture of what ran on GPUs: a lane for each stream, products apart from transfers, as SVG.

Read from a Chrome trace (JSON) whose events say device and stream, as torch's profiler writes it. What
moves or sums what lies on several ranks counts as a transfer: Lamella's own kernels, NCCL's, copies.
Invariant: times are the trace's own; what is beside what follows from them alone.
Leaves taking a trace to tests/gpu/figures.py, and on the stand-in to its tests.
"""

import json
import re
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bindings.cli.common import Problem

ON_CARD = ("kernel", "gpu_memcpy", "gpu_memset")  # a trace's categories
TRANSFER = re.compile(r"nccl|memcpy|a copy|peer_|sum_lanes|gather_lanes|drain_lanes|use_box", re.I)


@dataclass(frozen=True)
class Span:
    card: int
    stream: int
    name: str
    begin: float  # us
    end: float

    @property
    def is_transfer(self):
        return bool(TRANSFER.search(self.name))


def read(text):
    """Spans of a trace, by their beginning."""
    try:
        events = json.loads(text)["traceEvents"]
        return sorted((span_of(e) for e in events if e.get("ph") == "X" and e.get("cat") in ON_CARD),
                      key=lambda span: span.begin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem("a trace: %r is not what a profiler writes" % error, 2) from None


def span_of(event):
    about, begin = event["args"], float(event["ts"])
    return Span(int(about["device"]), int(about["stream"]), event["name"], begin, begin + float(event["dur"]))


# -- what is beside what --


def merged(spans):
    """Disjoint [begin, end] that cover the same time, in order."""
    found = []
    for span in sorted(spans, key=lambda s: s.begin):
        if found and span.begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], span.end)
        else:
            found.append([span.begin, span.end])
    return found


def shared(one, other):
    """The time that is in both."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in merged(one) for b in merged(other))


def beside(spans):
    """{card: (us of transfers, us of them beside other work of that card)}"""
    found = {}
    for card in sorted({span.card for span in spans}):
        transfers = [s for s in spans if s.card == card and s.is_transfer]
        work = [s for s in spans if s.card == card and not s.is_transfer]
        found[card] = (sum(end - begin for begin, end in merged(transfers)), shared(transfers, work))
    return found


# -- the picture --

LEFT, PLOT, RIGHT, TOP, LANE, PITCH, AXIS = 150, 960, 240, 64, 24, 30, 40
STYLE = ("text{font:12px sans-serif;fill:#222}.l{text-anchor:end}.t{text-anchor:middle;fill:#666}"
         ".bg{fill:#f2f2f2}.g{stroke:#d8d8d8}.c{fill:#8dbbe6;stroke:#fff}.x{fill:#efc96a;stroke:#fff}")


def svg(spans, title):
    if not spans:
        raise Problem("a trace: nothing in it ran on a GPU", 2)
    first, last = spans[0].begin, max(span.end for span in spans)
    lanes = sorted({(span.card, span.stream) for span in spans})
    place = lambda us: LEFT + (us - first) / max(last - first, 1e-9) * PLOT  # noqa: E731
    foot = TOP + len(lanes) * PITCH
    size = (LEFT + PLOT + RIGHT, foot + AXIS)
    lines = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d">' % (size * 2),
             "<style>%s</style>" % STYLE, '<rect width="%d" height="%d" fill="#fff"/>' % size,
             '<text x="%d" y="20">%s</text>' % (LEFT, escape(title)), *legend()]
    lines += axis(last - first, foot)
    for number, lane in enumerate(lanes):
        lines += lane_of(lane, TOP + number * PITCH, spans, place, first)
    lines += notes(lanes, beside(spans))
    return "\n".join([*lines, "</svg>"]) + "\n"


def legend():
    for x, look, text in ((LEFT, "c", "products and other work"), (LEFT + 200, "x", "transfers and sums over ranks")):
        yield '<rect class="%s" x="%d" y="32" width="16" height="14"/><text x="%d" y="44">%s</text>' % (
            look, x, x + 22, text)


def long(us):
    """As text, in the largest unit of which it has at least one."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return "%.3g %s" % (us / size, unit)
    return "%.3g us" % us


def axis(whole, foot):
    for i in range(6):
        x = LEFT + PLOT * i / 5
        yield '<line class="g" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>' % (x, TOP - 6, x, foot)
        yield '<text class="t" x="%.1f" y="%d">%s</text>' % (x, foot + 16, long(whole * i / 5))


def lane_of(lane, y, spans, place, first):
    yield '<rect class="bg" x="%d" y="%d" width="%d" height="%d"/>' % (LEFT, y, PLOT, LANE)
    yield '<text class="l" x="%d" y="%d">card %d, stream %d</text>' % (LEFT - 10, y + 16, *lane)
    for span in spans:
        if (span.card, span.stream) == lane:
            x, width = place(span.begin), max(place(span.end) - place(span.begin), 0.5)
            yield '<rect class="%s" x="%.2f" y="%d" width="%.2f" height="%d"><title>%s</title></rect>' % (
                "x" if span.is_transfer else "c", x, y, width, LANE,
                escape("%s: %s to %s" % (span.name, long(span.begin - first), long(span.end - first))))


def notes(lanes, found):
    """Beside each card's first lane."""
    for card, (whole, hidden) in found.items():
        number = next(i for i, lane in enumerate(lanes) if lane[0] == card)
        text = "transfers " + long(whole) + (", %.0f %% beside work" % (100 * hidden / whole) if whole else "")
        yield '<text x="%d" y="%d">%s</text>' % (LEFT + PLOT + 10, TOP + number * PITCH + 16, text)
