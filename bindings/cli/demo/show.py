"""What the demo shows: progress, the loss curve, tables. Text only; nothing here measures.

Invariant: every figure comes from the workers' own lines or from plain arithmetic on them.
"""

import math
import statistics
import sys
import time

WIDTH, HEIGHT = 64, 12
ROWS = 16  # of the table of two hosts' losses
EVERY_S = 5.0  # where lines cannot be overwritten, one comes this often


SHARED_IDLE = """\
  There are more workers than cores, so the clock on the wall says little. Measured is here the
  thread CPU time of each forward and backward, in the order and with the dependencies that they
  had in the step, as if each worker had a core of its own."""


def section(title, about=""):
    print("\n%s%s" % (title, ": " + about if about else ""), flush=True)


def count(workers):
    return "%d worker%s" % (workers, "" if workers == 1 else "s")


def layers_of(plan):
    """Each worker's layers: "1-2 and 7-8, 3-4 and 5-6"."""
    held = [[] for _ in range(plan["pp"])]
    for first, last, rank in plan["stages"]:
        held[rank].append("%d-%d" % (first, last) if first < last else "%d" % first)
    return ", ".join(" and ".join(stages) for stages in held)


def introduce(plan, cores):
    print(
        "A decoder of %(layers)d layers, hidden size %(hidden)d, %(heads)d heads, "
        "%(parameters).1f M weights (%(dtype)s),\non the bytes of %(text)s."
        % dict(plan, parameters=plan["parameters"] / 1e6)
    )
    n = plan["pp"] * plan["tp"]
    print(
        "%s: a pipeline of %d (layers %s) x %d tensor part%s;\n"
        "schedule %s, %d micro-batches of %d tokens."
        % (
            count(n),
            plan["pp"],
            layers_of(plan),
            plan["tp"],
            "" if plan["tp"] == 1 else "s",
            plan["schedule"],
            plan["micro_batches"],
            plan["tokens"] // plan["micro_batches"],
        )
    )
    if plan["device"] == "cuda":
        print("On GPUs: workers are processes, and take this machine's cards in turn.")
    if plan["why"]:
        print("auto took %s: %s." % (plan["schedule"], plan["why"]))
    if n > cores:
        print("%d workers share %d cores: wall-clock times are of shared cores." % (n, cores))


class Progress:
    """Step, loss, tokens per second and time left: one line that is written over on a terminal."""

    def __init__(self, what, steps, tokens):
        self.what, self.steps, self.tokens = what, steps, tokens
        self.done, self.began, self.last = 0, None, 0.0
        self.over = sys.stdout.isatty()

    def step(self, message):
        now = time.monotonic()
        self.done += 1
        if self.began is None:  # the first step warms up; it does not count
            self.began = now
        if self.over or now - self.last > EVERY_S or self.done in (1, self.steps):
            self.last = now
            self.show(message["loss"], message["ms"], now)

    def show(self, loss, ms, now):
        each = (now - self.began) / (self.done - 1) if self.done > 1 else ms * 1e-3
        line = "  %s  step %d/%d  loss %.4f  %.0f tokens/s  %.0f s left" % (
            self.what,
            self.done,
            self.steps,
            loss,
            self.tokens / each,
            each * (self.steps - self.done),
        )
        end = "" if self.over and self.done < self.steps else "\n"
        print("\r%-79s" % line if self.over else line, end=end, flush=True)


def table(head, rows):
    """Columns under their heads, the first to the left, the others to the right."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  " + "   ".join([first, *rest]).rstrip())


def curve(split, whole):
    """Both loss curves in one picture: o split, + one worker, * both in one place."""
    top, low = max(split + whole), min(split + whole)
    columns = min(WIDTH, len(split))
    grid = [[" "] * columns for _ in range(HEIGHT)]

    def put(losses, mark):
        for x in range(columns):
            loss = losses[x * (len(losses) - 1) // max(1, columns - 1)]
            y = round((top - loss) / (top - low or 1) * (HEIGHT - 1))
            grid[y][x] = "*" if grid[y][x] not in (" ", mark) else mark

    put(split, "o")
    put(whole, "+")
    for y, row in enumerate(grid):
        height = top - (top - low) * y / (HEIGHT - 1)
        print("  %6.2f |%s" % (height, "".join(row).rstrip()))
    print("         +" + "-" * columns)
    steps = "1%s%d" % (" " * max(1, columns - 4), len(split))
    print("     step %s   (o split, + one worker, * both)" % steps)


def difference(split, whole):
    """The largest difference of two loss curves and the step, counted from 1, where it is."""
    apart = (abs(a - b) for a, b in zip(split, whole))
    return max((math.inf if math.isnan(d) else d, i + 1) for i, d in enumerate(apart))


def losses(ours, theirs, allowed, name):
    """Both hosts' losses, every few steps in a table; whether all steps lie within `allowed`."""
    steps = min(len(ours), len(theirs))
    every = max(1, -(-steps // ROWS))
    shown = [i for i in range(steps) if i % every == 0 or i == steps - 1]
    off = ["%.1e" % abs(ours[i] - theirs[i]) for i in shown]
    numbers = [["%.6f" % losses[i] for i in shown] for losses in (ours, theirs)]
    table(["step", "C", name, "difference"], list(zip([str(i + 1) for i in shown], *numbers, off)))
    most, step = difference(ours, theirs) if steps else (0.0, 0)
    return verdict(most, allowed, "at step %d" % step, len(ours) == len(theirs))


def gradients(told, hosts, allowed):
    """By worker, where its gradients lie furthest from the expected; whether all are `allowed`."""
    rows = [
        [str(rank), host, "%.1e" % told[rank]["difference"], told[rank]["weight"]]
        for rank, host in enumerate(hosts)
        if rank in told
    ]
    table(["worker", "host", "difference", "at most in"], rows)
    most = max((told[rank]["difference"] for rank in told), default=0.0)
    where = "of a weight's largest gradient"
    return verdict(most, allowed, where, len(rows) == len(hosts))


def verdict(most, allowed, where, complete):
    passed = complete and most <= allowed
    said = "PASS" if passed else "FAIL"
    print("  largest difference %.2g, %s; allowed %.0e: %s" % (most, where, allowed, said))
    return passed


def percent(share):
    return "%.1f %%" % (100 * share)


def idle(reports):
    """Each worker's idle share in each report, measured and predicted."""
    head = ["worker", "place", "part"]
    for report in reports:
        head += [report["report"] + " measured", "predicted"]
    rows = []
    for rank, worker in enumerate(reports[0]["workers"]):
        row = [str(rank), str(worker["index"] + 1), str(worker["part"] + 1)]
        for report in reports:
            here = report["workers"][rank]
            row += [percent(here["idle"]), percent(here["predicted"])]
        rows.append(row)
    table(head, rows)


def explain(reports):
    """What the library says of where the last step went, and what to do about it."""
    for report in reports:
        if report["explained"]:
            print("  %s:" % report["report"])
            print("".join("    %s\n" % line for line in report["explained"].splitlines()), end="")


def memory(workers, tp):
    rows = []
    for rank, worker in enumerate(workers):
        off = worker["peak"] / worker["predicted"] - 1
        place = [str(rank), str(rank // tp + 1), str(rank % tp + 1)]
        sizes = ["%.1f MB" % (worker[key] / 1e6) for key in ("peak", "predicted")]
        rows.append([*place, *sizes, "%+.1f %%" % (100 * off)])
    table(["worker", "place", "part", "peak", "predicted", "off by"], rows)


def scaling(runs):
    """Speed-up of two workers over one, and what the rest of two workers' time went to."""
    alone = typical(runs[1, 1].times)
    rows = [["1", "%.0f ms" % alone, "1.00", "", "", ""]]
    for (pp, tp), told in runs.items():
        if pp * tp == 1:
            continue
        step = typical(told.times)
        other = 1 - alone / step / 2 - told.idle - told.transfer
        shares = [percent(share) for share in (told.idle, told.transfer, other)]
        name = "2 by %s" % ("pp" if pp > 1 else "tp")
        rows.append([name, "%.0f ms" % step, "%.2f" % (alone / step), *shares])
    table(["workers", "step", "speed-up", "idle", "transfer", "smaller gemms, other"], rows)


def typical(times):
    """The median step, without the first two, which warm up."""
    return statistics.median(times[2:] or times)
