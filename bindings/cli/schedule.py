"""lamella schedule: which schedule for so many ranks, stages and micro-batches; any of them drawn,
converted, checked.

Asks the program of bindings/cli/schedule, which asks the library; this module only says what is
best and shows it.
Invariant: a mistake is one line and nothing on stdout; status 2 for wrong usage, 1 for a table or a
memory cap that does not do.
"""

import argparse
import json
import re
import subprocess
from itertools import zip_longest
from pathlib import Path

from bindings.cli import bazel, packages
from bindings.cli.common import Problem, say

TARGET = "//bindings/cli/schedule:lamella_schedule"
COSTS = ["forward", "input", "weight", "comm", "fused"]
WEIGHTS = ["E", "t", "mtp", "L"]
MEMORY = ["static", "act"]
FORMATS = {".txt": "grid", ".svg": "svg", ".json": "perfetto"}
HEAD = ["", "schedule", "v", "step", "bubble", "per rank", "holds"]
EXACT = 1000  # parts of a unit that memory is counted in, where it is not given in bytes
EPILOG = """\
costs and memory are of one rank's share of the layers; with --layers, of one layer t.
  lamella schedule -p 4 -v 2 -m 8 --costs 1.2,1.3,0.9,0.1 --cap 3
  lamella schedule -p 4 -m 8 --layers 'Et*30,L' --weights 0.2,1,1,2
  lamella schedule -p 4 -m 8 --draw zbv --out zbv.svg
  lamella schedule --convert zbv.csv --to text"""


def add_arguments(parser):
    parser.epilog = EPILOG
    parser.add_argument("-p", type=count, metavar="P", help="ranks")
    parser.add_argument("-v", type=count, default=2, metavar="V", help="stages per rank (2)")
    parser.add_argument("-m", type=count, metavar="M", help="micro-batches")
    parser.add_argument(
        "--costs",
        type=numbers("F,I,W,comm,FB", 3),
        default=[1, 1, 1],
        metavar="F,I,W[,comm[,FB]]",
        help="ms of a micro-batch: forward, backward for the input and for the weight, transfer, "
        "a forward and a backward in one (1,1,1)",
    )
    parser.add_argument(
        "--memory",
        type=numbers("STATIC,ACTIVATION", 2),
        default=[0, 1],
        metavar="STATIC,ACT",
        help="held always, and by micro-batch in flight (0,1: counts micro-batches)",
    )
    parser.add_argument(
        "--cap", type=positive, metavar="MEMORY", help="what a rank may hold, in the same unit"
    )
    parser.add_argument(
        "--no-split", action="store_true", help="stages cannot split their backward in I and W"
    )
    parser.add_argument(
        "--layers", help="as Megatron writes them: Et*30,L to be cut; with | as they are cut"
    )
    parser.add_argument(
        "--weights",
        type=numbers("E,t,m,L", 4),
        default=[0, 1, 1, 0],
        metavar="E,t,m,L",
        help="what each kind of layer costs and holds (0,1,1,0)",
    )
    parser.add_argument("--json", action="store_true", help="the list as JSON")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--draw", metavar="NAME|FILE", help="draw a schedule")
    what.add_argument("--convert", metavar="FILE", help="print a table in another form")
    what.add_argument("--check", metavar="FILE", help="prove that a table runs, or say why not")
    parser.add_argument("--out", metavar="FILE", help="for --draw: .txt, .svg or .json (Perfetto)")
    parser.add_argument("--to", choices=["csv", "text"], default="csv", help="for --convert (csv)")


def count(text):
    if not text.isdigit() or not 1 <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError("%r is not a number from 1 to %d" % (text, 1 << 20))
    return int(text)


def positive(text):
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("%r is not above 0" % text)
    return value


def number(text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1e15:
        raise argparse.ArgumentTypeError("%r is not a number from 0 to 1e15" % text)
    return value


def numbers(names, least):
    most = names.count(",") + 1

    def parse(text):
        values = [number(word) for word in text.split(",")]
        if not least <= len(values) <= most:
            raise argparse.ArgumentTypeError("%r: expected %s" % (text, names))
        return values

    return parse


def main(args):
    check_usage(args)
    table = read(args.check or args.convert) if args.check or args.convert else None
    packages.ensure("build")
    tool = Tool(build(), args)
    if args.check:
        return show_check(args.check, json.loads(tool.ask("check", stdin=table, about=args.check)))
    if args.convert:
        print(tool.ask("write", "format=" + args.to, stdin=table, about=args.convert), end="")
        return 0
    return draw(tool, args) if args.draw else show_list(tool, args)


def check_usage(args):
    names_a_shape = not (args.check or args.convert or (args.draw and is_file(args.draw)))
    if names_a_shape and not (args.p and args.m):
        raise Problem("schedule: -p and -m are needed: how many ranks, how many micro-batches", 2)
    if args.out and not args.draw:
        raise Problem("schedule: --out is for --draw", 2)
    if args.out and Path(args.out).suffix not in FORMATS:
        raise Problem("schedule: --out %s: expected .txt, .svg or .json" % args.out, 2)


def build():
    if bazel.build([TARGET]) != 0:
        raise Problem("the program behind this command does not build; see above")
    return str(Path(bazel.info("bazel-bin")) / "bindings/cli/schedule/lamella_schedule")


def is_file(text):
    return "." in text or "/" in text


def read(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Problem("schedule: %s: %s" % (path, error.strerror), 2) from None


class Tool:
    """The program, and the words that every question begins with."""

    def __init__(self, program, args):
        self.program = program
        self.scale = 1 if args.memory[1] >= EXACT else EXACT
        self.words = ["v=%d" % args.v, "scale=%d" % self.scale]
        self.words += ["%s=%d" % (name, vars(args)[name]) for name in "pm" if vars(args)[name]]
        given = [(COSTS, args.costs), (MEMORY, args.memory), (WEIGHTS, args.weights)]
        for names, values in given:
            self.words += ["%s=%.17g" % pair for pair in zip(names, values)]
        if args.cap:
            self.words.append("cap=%.17g" % args.cap)
        if args.no_split:
            self.words.append("whole=1")
        if args.layers is not None:
            self.words.append("layers=" + args.layers)

    def ask(self, what, *words, stdin=b"", about=""):
        """What it prints; a Problem with its one line where it fails."""
        command = [self.program, what, *self.words, *words]
        done = subprocess.run(command, input=stdin, capture_output=True)
        if done.returncode == 0:
            return done.stdout.decode()
        why = plain(done.stderr.decode(errors="replace").strip()) or "it ended with no word"
        status = done.returncode if done.returncode in (1, 2) else 1
        raise Problem("schedule: " + (about + ": " if about else "") + why, status)

    def in_unit(self, text):
        """The library counts bytes; what was asked may be in parts of another unit."""
        if self.scale == 1:
            return text
        unit = r"(holds |cap is |fit in |: )(\d+)( bytes)?(?=[ ,:;]|$)"
        return re.sub(unit, lambda at: at[1] + "%g" % (int(at[2]) / self.scale), text)


def plain(message):
    """Without what only a caller of the library can use: its functions and flags."""
    return re.sub(r"^lam_\w+: |, unless LAM_\w+ is set", "", message)


# -- the list --


def show_list(tool, args):
    *rows, choice = [json.loads(line) for line in tool.ask("list").splitlines()]
    if "name" in choice:  # with layers there is no rule to ask
        rows, choice = [*rows, choice], None
    for row in rows:
        row["why_not"] = why_not(tool, row, args)
    best = find_best(rows, args)
    if args.json:
        print(json.dumps({"schedules": rows, "best": best["name"], "auto": choice}, indent=1))
        return 0
    show_table(rows, best)
    if args.layers:
        show_layouts(rows)
    print("\nbest: %s: %s" % (best["name"], praise(best, rows, args)))
    if choice:
        print("auto: %s: %s" % (choice.get("auto", "none"), tool.in_unit(plain(choice["reason"]))))
    return 0


def why_not(tool, row, args):
    """Why a schedule is out of the question; None where it is not."""
    if "why" in row:
        return tool.in_unit(plain(row["why"]))
    if args.cap and max(row["held"]) > args.cap * (1 + 1e-9):
        return "holds %g, the cap is %g" % (max(row["held"]), args.cap)
    return "needs stages that split their backward" if args.no_split and row["splits"] else None


def find_best(rows, args):
    """The shortest step; of equal ones the one that holds least, then waits least."""
    runs = [row for row in rows if not row["why_not"]]
    if runs:
        shortest = min(row["makespan"] for row in runs)
        ties = [row for row in runs if row["makespan"] <= shortest * (1 + 1e-9)]
        return min(ties, key=lambda row: (max(row["held"]), row["rank_bubble"]))
    built = [row for row in rows if "held" in row]
    if built and args.cap:
        least = min(built, key=lambda row: max(row["held"]))
        lack = (args.cap, least["name"], max(least["held"]), max(least["held"]) - args.cap)
        raise Problem("schedule: --cap %g: even %s holds %g: %g is missing" % lack)
    status = 1 if args.cap else 2
    raise Problem("schedule: no schedule: " + rows[0]["why_not"], status)


def praise(best, rows, args):
    runs = [row for row in rows if not row["why_not"]]
    ties = [row["name"] for row in runs if row["makespan"] <= best["makespan"] * (1 + 1e-9)]
    ties.remove(best["name"])
    fit = " of those that fit in %g" % args.cap if args.cap else ""
    if len(runs) == 1:
        return "the only one" + (" that fits in %g" % args.cap if args.cap else "")
    if ties:
        return "the shortest step%s, as short as %s, and none of these holds less" % (
            fit,
            ", ".join(ties),
        )
    others = [row for row in runs if row is not best]
    second = min(others, key=lambda row: row["makespan"])
    less = 100 * (1 - best["makespan"] / second["makespan"])
    return "the shortest step%s, %.1f %% less than %s" % (fit, less, second["name"])


def show_table(rows, best):
    lines = [HEAD] + [cells(row, row is best) for row in rows]
    columns = zip_longest(*[line[:-1] for line in lines], fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    for *first, last in lines:  # the last cell may be as long as it likes
        fixed = [cell.ljust(width) for cell, width in zip(first, widths)]
        print("  ".join([*fixed, last]).rstrip())


def cells(row, is_best):
    if "why" in row:
        return [" ", row["name"], "- " + row["why_not"]]
    held = held_text(row["held"])
    if row["why_not"]:
        held += "  " + row["why_not"]
    shares = ["%.1f %%" % (100 * row[key]) for key in ("bubble", "rank_bubble")]
    mark = "*" if is_best else " "
    return [mark, row["name"], str(row["v"]), "%.4g ms" % row["makespan"], *shares, held]


def held_text(held):
    return " ".join("%.4g" % each for each in held) if len(held) <= 8 else "%.4g" % max(held)


def show_layouts(rows):
    print("\nlayers of each stage")
    for row in rows:
        if "layout" in row:
            print("  %-16s %s   %s" % (row["name"], row["layout"], row["proof"]))


# -- one table --


def draw(tool, args):
    if is_file(args.draw):
        table = read(args.draw)
    else:
        table = tool.ask("make", "name=" + args.draw).encode()
    kind = FORMATS[Path(args.out).suffix] if args.out else "grid"
    about = args.draw if is_file(args.draw) else ""
    picture = tool.ask("draw", "format=" + kind, stdin=table, about=about)
    if not args.out:
        print(picture, end="")
        return 0
    try:
        Path(args.out).write_text(picture)
    except OSError as error:
        raise Problem("schedule: --out %s: %s" % (args.out, error.strerror), 2) from None
    say("wrote %s" % args.out)
    return 0


def show_check(path, told):
    print(
        "%s: runs: %d ranks, %d stages, %d micro-batches; %d actions, %d transfers"
        % (path, told["p"], told["stages"], told["m"], told["actions"], told["transfers"])
    )
    print(
        "  step %.4g ms, bubble %.1f %%, per rank %.1f %%"
        % (told["makespan"], 100 * told["bubble"], 100 * told["rank_bubble"])
    )
    print(
        "  a rank holds at most %d activations; the deepest ring has %d slots"
        % (told["peak"], told["ring"])
    )
    return 0
