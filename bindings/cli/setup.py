"""lamella setup: installs the Debian packages that are missing; done twice, it does nothing."""

from bindings.cli import packages
from bindings.cli.common import say

SETS = ["all", "build", "demo", "test", "bench"]


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
        lacking = packages.missing(args.for_command)
        print(packages.install_line(lacking) if lacking else "nothing is missing")
        return 0
    done = packages.ensure(args.for_command)
    say("%d installed; everything is there" % len(done) if done else "everything is there")
    return 0
