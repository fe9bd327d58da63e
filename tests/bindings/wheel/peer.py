"""Rank 1 of 2, the peer of waiting.py: joins each group and calls when it is told to.

    python peer.py CASE ID ...

For each line on stdin: the next group's operation, and what it gave.
"""

import sys

import lamella
from lamella.pipeline import Pipeline, Schedule, Stage


class First(Stage):
    def forward(self, io):
        pass

    backward = forward


def call_of(case, group):
    """What it will call; made beforehand, for making a pipeline takes both ranks."""
    if case != "pipeline":
        return group.warmup
    schedule = Schedule.parse("rank 0: 1F0 1B0\nrank 1: 0F0 0B0\n")
    return Pipeline(schedule, {0: First()}, [[((4,), "f32")]], group).run


for case, id in zip(sys.argv[1::2], sys.argv[2::2]):
    group = lamella.Group.create(bytes.fromhex(id), 1, 2)
    call = call_of(case, group)
    sys.stdin.readline()
    try:
        call()
        print("well", flush=True)
    except lamella.Error as error:
        print(type(error).__name__, error, flush=True)
