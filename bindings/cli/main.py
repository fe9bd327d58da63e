"""lamella's commands: reads the command line and calls one module per command.

Each command is a module with add_arguments(parser) and main(args) -> exit status, imported only
when it is asked for. Invariant: a user's mistake or a missing thing ends in one clear line and a
status (2 for wrong usage), never in a traceback.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # so that no module here hides one of Python's own (test, run)

from bindings.cli.common import Problem, say  # noqa: E402

COMMANDS = [
    # name, module, one line
    ("setup", "bindings.cli.setup", "install what is missing (Debian and Python packages), once"),
    ("build", "bindings.cli.build", "build the library and everything around it"),
    ("demo", "bindings.cli.demo.demo", "train a small decoder on real text, split over workers"),
    ("schedule", "bindings.cli.schedule", "which pipeline schedule: list, draw, convert, check"),
    ("test", "bindings.cli.test", "run every test"),
    ("bench", "bindings.cli.bench", "measure, beside the peers found on this machine"),
    ("doctor", "bindings.cli.doctor", "what this machine has, what is missing, how to install it"),
    ("wheel", "bindings.cli.wheel", "make the Python package, to be installed with pip"),
    ("run", "bindings.cli.run", "start N copies of a program as the ranks of one group"),
]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message):
        command = self.prog.partition(" ")[2]
        raise Problem((command + ": " if command else "") + message, 2)


def make_parser(chosen):
    """A parser that knows every command's name, and the options of the chosen one only."""
    parser = Parser(
        prog="lamella",
        description="Run a model split over devices: tensor-parallel layers and pipeline stages.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module, line in COMMANDS:
        sub = commands.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            command = importlib.import_module(module)
            command.add_arguments(sub)
            sub.set_defaults(main=command.main)
    commands.add_parser("help", help="this list, or the help of one command").add_argument(
        "topic", nargs="?"
    )
    return parser


def parse(argv):
    if argv[:1] == ["help"]:  # `help run` is `run --help`
        argv = argv[1:2] + ["--help"]
    argv = argv or ["--help"]
    return make_parser(argv[0]).parse_args(argv)


def main(argv):
    try:
        args = parse(argv)
        return args.main(args)
    except Problem as problem:
        say(str(problem))
        return problem.status
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("bindings."):
            raise
        say("this copy of Lamella lacks %s" % missing.name)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
