"""What a run of benchmarks shows and writes: its groups, and its rows as text, Markdown and JSON.

Leaves measuring to the groups, where they run to bench.py and gpu_bench.py.
"""

from dataclasses import asdict

from bindings.cli.bench_figures import Row
from bindings.cli.common import Problem


def document(rows: list[Row], about: dict) -> dict:
    """What --json writes."""
    return {"machine": about, "rows": [asdict(row) for row in rows]}


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    head = ("what", "figure", "spread", "peer", "peer's", "ratio", "goal", "met", "note")
    cells = [head] + [row_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def row_cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    peers, ratio = shown(row.peer_figure, ".4g"), shown(row.ratio, ".3f")
    return (row.name, figure(row), shown(row.spread, ".0%"), row.peer, peers, ratio, row.goal, met, row.note)


def figure(row: Row) -> str:
    return "" if row.figure is None else f"{row.figure:.4g} {row.unit}"


def shown(value: float | None, form: str) -> str:
    """Nothing where there is no value."""
    return "" if value is None else format(value, form)


def markdown(rows: list[Row], about: dict) -> str:
    """The rows as a table for a README, under a line that says what they were measured on."""
    head = f"{about['cores']} cores of {about['cpu']}, Linux {about['kernel']}, commit {about['commit']}."
    return head + "\n\n" + rows_markdown(rows)


def rows_markdown(rows: list[Row]) -> str:
    head = ("| what | figure | spread | peer | ratio | goal | met |", "|---|---|---|---|---|---|---|")
    return "\n".join([*head, *("| " + " | ".join(markdown_cells(row)) + " |" for row in rows)]) + "\n"


def markdown_cells(row: Row) -> tuple[str, ...]:
    peer = f"{row.peer} {shown(row.peer_figure, '.4g')}".strip()
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    return (row.name, figure(row), shown(row.spread, ".0%"), peer, shown(row.ratio, ".2f"), row.goal, met)


def summary(group):
    return group.__doc__.splitlines()[0]


def choose(args, groups):
    unknown = [name for name in args.only or [] if name not in groups]
    if unknown:
        raise Problem(f"bench: no group {unknown[0]!r}; groups: {', '.join(groups)}", status=2)
    if args.rounds < 1:
        raise Problem("bench: --rounds must be at least 1", status=2)
    return args.only or list(groups)


def write(path, text):
    try:
        with open(path, "w") as out:
            out.write(text)
    except OSError as error:
        raise Problem(f"bench: cannot write {path}: {error.strerror}") from None
