"""What several GPUs would make of the products that one was timed with: a projection, and called one.

A layer whose in features are split over p ranks multiplies its share in c chunks of rows; the sum of each
chunk travels beside the next one's product. From the times of such shares on one card (rows of bench
--gpu) and published rates of links follow the step without and with overlap.
Invariant: a pure function of the bench's rows; nothing here measures. Latency, contention on links, and
multiprocessors that a sum takes from a product are in none of it: real steps are longer.
"""

import re
from dataclasses import dataclass

DEGREES, CHUNKS = (2, 4, 8), (1, 2, 4, 8)
F32 = 4  # bytes: what partial sums travel in


@dataclass(frozen=True)
class Link:
    name: str
    rate: float  # bytes a second, each way, of one GPU
    source: str


LINKS = (
    Link("NVLink 4", 450e9, "NVIDIA's data sheets of H100 and H200 SXM: 900 GB/s a GPU, both ways together"),
    Link("PCIe 5 x16", 64e9, "PCI Express 5.0: 32 GT/s, 16 lanes, before coding and headers"),
    Link("400 Gb/s InfiniBand", 50e9, "NDR, 4 lanes, a port for each GPU"),
)


@dataclass(frozen=True)
class Layer:
    """`linear` [rows, k] -> [rows, n], or `ffn` of width k and n in and out features."""

    kind: str
    rows: int
    k: int
    n: int

    def __str__(self):
        return "%s %dx%dx%d" % (self.kind, self.rows, self.k, self.n)


@dataclass(frozen=True)
class Step:
    layer: Layer
    degree: int
    link: Link
    products: float  # us, this rank's, in one chunk
    travel: float    # us, of all sums
    plain: float     # us, a step without overlap
    overlapped: float
    chunks: int      # with which that is shortest; 1: overlap does not pay
    alone: float     # us, on one GPU


LAYERS = (Layer("linear", 8192, 8192, 8192), Layer("ffn", 4096, 16384, 4096))
ROW = re.compile(r"tile (linear|ffn) (\d+)x(\d+)x(\d+) tp=(\d+) chunks=(\d+)")


def row_name(layer, degree, chunks):
    return "tile %s tp=%d chunks=%d" % (layer, degree, chunks)


def read_rows(rows):
    """{layer: {degree: {chunks: us}}} of the bench's rows, as --json writes them."""
    found = {}
    for row in rows:
        named = ROW.fullmatch(row["name"])
        if named and row["unit"] == "us":
            layer = Layer(named[1], *map(int, named.groups()[1:4]))
            found.setdefault(layer, {}).setdefault(int(named[5]), {})[int(named[6])] = row["figure"]
    return found


def travel_time(layer, degree, link):
    """us. Each rank sends, and receives, (p - 1) / p of the sum twice: its parts to whom they belong, and
    what became of them to all (a ring, or two shots)."""
    return 2 * (degree - 1) / degree * layer.rows * layer.n * F32 / link.rate * 1e6


def overlapped_time(products, travel, chunks):
    """us: the first chunk's product, then the longer of a product and a sum, then the last one's sum."""
    product, sum_ = products / chunks, travel / chunks
    return product + (chunks - 1) * max(product, sum_) + sum_


def project(rows, links=LINKS):
    """Steps for each layer, degree and link that the rows have times of."""
    return [step_of(layer, degree, link, times)
            for layer, times in read_rows(rows).items()
            for degree in DEGREES if 1 in times.get(degree, {}) and 1 in times.get(1, {})
            for link in links]


def step_of(layer, degree, link, times):
    travel, cut = travel_time(layer, degree, link), times[degree]
    best = min(sorted(cut), key=lambda chunks: overlapped_time(cut[chunks], travel, chunks))
    return Step(layer, degree, link, cut[1], travel, cut[1] + travel,
                overlapped_time(cut[best], travel, best), best, times[1][1])


# -- as text --

HEAD = ("layer", "tp", "link", "its products", "sums travel", "one after the other", "overlapped", "chunks",
        "times one GPU")


def cells(step):
    us = ["%.0f us" % t for t in (step.products, step.travel, step.plain, step.overlapped)]
    return (str(step.layer), str(step.degree), step.link.name, *us, str(step.chunks),
            "%.2f" % (step.alone / step.overlapped))


def preface(card):
    rates = ["%s %.0f GB/s each way (%s)" % (link.name, link.rate / 1e9, link.source) for link in LINKS]
    return ("A projection: no two GPUs were timed. Products are one card's (%s), each rank's share alone; links "
            "have their published rates: %s. Sums are of f32. Latency, contention and multiprocessors that "
            "sums take are left out, so real steps are longer." % (card, "; ".join(rates)))


def text(steps, card):
    lines = [HEAD, *map(cells, steps)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([preface(card), *table])


def markdown(steps, card):
    lines = ["| " + " | ".join(line) + " |" for line in (HEAD, ("---",) * len(HEAD), *map(cells, steps))]
    return "\n".join([preface(card), "", *lines])
