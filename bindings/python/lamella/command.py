"""Commands and their options, for `python -m lamella` and, in a checkout, ./lamella.

A command is a module with add_arguments(parser) and main(args) -> exit status, imported only when
it is asked for. Invariant: a user's mistake or a missing thing ends in one clear line and a
status (2 for wrong usage), never in a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

ABOUT = "Run a model split over devices: tensor-parallel layers and pipeline stages."


class Problem(Exception):
    """Something the user can understand and mend. Shown as one message, without a traceback."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def say(message: str) -> None:
    """To the user, beside the result: results go to stdout, everything else here."""
    print("lamella: " + message, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    command = ""

    def error(self, message):
        raise Problem((self.command + ": " if self.command else "") + message, 2)


def make_parser(program, commands, chosen):
    """A parser that knows every command's name, and the options of the chosen one only."""
    parser = Parser(prog=program, description=ABOUT)
    found = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module, line in commands:
        sub = found.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.command = name
        if name == chosen:
            command = importlib.import_module(module)
            command.add_arguments(sub)
            sub.set_defaults(main=command.main)
    found.add_parser("help", help="this list, or the help of one command").add_argument(
        "topic", nargs="?"
    )
    return parser


def parse(program, commands, argv):
    if argv[:1] == ["help"]:  # `help run` is `run --help`
        argv = argv[1:2] + ["--help"]
    argv = argv or ["--help"]
    return make_parser(program, commands, argv[0]).parse_args(argv)


def main(program: str, commands, argv: list[str]) -> int:
    """Runs one command. commands: (name, module, one line) of each; argv: without the program."""
    try:
        args = parse(program, commands, argv)
        return args.main(args)
    except Problem as problem:
        say(str(problem))
        return problem.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
