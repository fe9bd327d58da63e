"""lamella's commands: reads the command line and calls one module per command.

Each command is a module with add_arguments(parser) and main(args) -> exit status, imported only
when it is asked for. Leaves reading the command line, and mistakes in it, to lamella.command.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # so that no module here hides one of Python's own (test, run)

from bindings.cli.common import say  # noqa: E402
from lamella import command  # noqa: E402

COMMANDS = [
    # name, module, one line
    ("setup", "bindings.cli.setup", "install what is missing (Debian and Python packages), once"),
    ("build", "bindings.cli.build", "build the library and everything around it"),
    ("demo", "bindings.cli.demo.demo", "train a small decoder on real text, split over workers"),
    ("schedule", "bindings.cli.schedule", "which pipeline schedule: list, draw, convert, check"),
    ("test", "bindings.cli.test", "run every test"),
    ("bench", "bindings.cli.bench", "measure, beside the peers found on this machine"),
    ("pack-gpu", "bindings.cli.pack_gpu", "pack what test --gpu and bench --gpu need elsewhere"),
    ("gpu-results", "bindings.cli.gpu_results", "write tests/gpu/RESULTS.md from what those two kept"),
    ("doctor", "bindings.cli.doctor", "what this machine has, what is missing, how to install it"),
    ("wheel", "bindings.cli.wheel", "make the Python package, to be installed with pip"),
    ("run", "lamella.run", "start N copies of a program as the ranks of one group"),
]


def main(argv):
    try:
        return command.main("lamella", COMMANDS, argv)
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("bindings."):
            raise
        say("this copy of Lamella lacks %s" % missing.name)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
