"""What pip calls (PEP 517, PEP 660): builds the native part with Bazel and packs the wheel.

Invariant: a failure is one line on stderr and a status, as in ./lamella; pip shows that line.
Leaves what goes in to contents.py, the file format to archive.py.
"""

from pathlib import Path

from bindings.cli import bazel
from bindings.cli.common import ROOT, Problem
from bindings.wheel import archive, contents, metadata

SOURCES = "bindings/python"  # where the package lies in a checkout


class UnsupportedOperation(Exception):
    """PEP 517's name for what a backend does not do."""


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return told(write, wheel_directory, contents.package)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return told(write, wheel_directory, link_to_checkout)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = Path(metadata_directory) / metadata.dist_info()
    folder.mkdir()
    for name, data in told(metadata.files).items():
        (folder / name).write_bytes(data)
    return folder.name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_sdist(sdist_directory, config_settings=None):
    raise UnsupportedOperation("Lamella is built from a clone, where Bazel finds its tests too")


def told(function, *arguments):
    """A problem that the user can mend is told without a traceback."""
    try:
        return function(*arguments)
    except Problem as problem:
        raise SystemExit("lamella: " + str(problem)) from None


def write(folder, files_of):
    """Gives the wheel's name. files_of(bin_dir) -> {path: archive.Entry} without the metadata."""
    files = files_of(build_native())
    licenses = contents.licenses(files)
    files.update(metadata.entries(licenses))
    name = "%s-%s.whl" % (metadata.release(), contents.TAG)
    archive.write(Path(folder) / name, files, metadata.dist_info())
    return name


def build_native():
    """Gives the folder that Bazel puts files in."""
    if bazel.build(list(contents.TARGETS)) != 0:
        raise Problem("the native library does not build: see above, and ./lamella doctor")
    return Path(bazel.info("bazel-bin"))


def link_to_checkout(bin_dir):
    """An editable installation: a line that adds the checkout's folder to sys.path."""
    line = "%s\n" % (ROOT / SOURCES)
    return {"lamella.pth": archive.Entry(line.encode())}
