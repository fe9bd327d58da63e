"""lamella setup: installs the Debian and Python packages that are missing; twice does nothing."""

from bindings.cli import headers, packages, venv
from bindings.cli.common import say

SETS = ["all", "build", "demo", "test", "bench", "gpu"]


def add_arguments(parser):
    parser.add_argument(
        "for_command",
        nargs="?",
        choices=SETS,
        default="all",
        metavar="COMMAND",
        help="only what this command needs: %s (default: all)" % ", ".join(SETS[1:]),
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what is missing, install nothing"
    )


def main(args):
    if args.dry_run:
        print("\n".join(install_lines(args.for_command)) or "nothing is missing")
        return 0
    done = packages.ensure(args.for_command)
    say("%d installed; everything is there" % len(done) if done else "everything is there")
    return 0


def install_lines(command):
    """What would be installed, as commands."""
    debian, python = packages.missing(command), venv.missing(command)
    lines = [packages.install_line(debian)] if debian else []
    for option, rows in venv.passes(python):
        lines.append(" ".join([".venv/bin/pip install", *option, *map(venv.pin, rows)]))
    for wheel in headers.missing(command):
        lines.append("%s out of pip's %s" % (wheel.what, venv.pin(wheel)))
    return lines
