"""lamella build: everything, with Bazel; what did not change is not built again."""

from bindings.cli import bazel, packages


def add_arguments(parser):
    parser.add_argument(
        "target", nargs="*", default=["//..."], help="Bazel targets (default: //...)"
    )
    parser.add_argument(
        "--config", choices=["asan", "tsan", "clang"], help="with a sanitizer, or another compiler"
    )


def main(args):
    packages.ensure("build")
    options = ["--config=" + args.config] if args.config else []
    return 0 if bazel.build(args.target, options) == 0 else 1
