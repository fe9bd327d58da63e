"""lamella wheel: the package `lamella` with its native library inside, as pip installs it."""

from pathlib import Path

from bindings.cli import packages
from bindings.cli.common import ROOT, Problem


def add_arguments(parser):
    parser.add_argument("--out", default=ROOT / "dist", type=Path, metavar="DIR",
                        help="where to put it (default: dist in the checkout)")


def main(args):
    from bindings.wheel import backend

    packages.ensure("build")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        print(args.out / backend.write(args.out, backend.contents.package))
    except OSError as error:
        raise Problem("wheel: %s: %s" % (error.filename, error.strerror)) from None
    return 0
