"""What the bench programs of hosts share: times in turn, and the lines that
`./lamella bench` reads.

Invariant: everything that is compared is measured in turn, round by round.
"""

import statistics
import time


def in_turn(functions, rounds, calls=1):
    """Times each function (a call of it makes `calls` calls of what is measured) once a round, in
    turn, after one round that warms up. {name: [us per call of each round]}"""
    times = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            begin = time.perf_counter_ns()
            function()
            if i:
                times[name].append((time.perf_counter_ns() - begin) / calls / 1e3)
    return times


def show(name, values, unit="us"):
    """One line: the median, and the width of the middle half over it; of one value there is none."""
    middle = statistics.median(values)
    spread = ""
    if len(values) > 1 and middle:
        low, _, high = statistics.quantiles(values, n=4)
        spread = " %.3f" % ((high - low) / abs(middle))
    print("%s %.4g %s%s" % (name, middle, unit, spread), flush=True)
