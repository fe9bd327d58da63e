"""The wheel's dist-info files, from pyproject.toml and lamella.h.

Invariant: each fact stands in one of these two files and nowhere else.
Leaves reading licences to contents.py.
"""

import re
import sys
from functools import cache

from bindings.cli.common import ROOT, Problem
from bindings.wheel import archive, contents


@cache
def project():
    if sys.version_info < (3, 11):
        raise Problem("building a wheel needs Python 3.11 or newer (this is %d.%d); the wheel runs "
                      "on older ones too" % sys.version_info[:2])
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@cache
def version():
    header = (ROOT / "abi/lamella.h").read_text()
    parts = ("MAJOR", "MINOR", "PATCH")
    return ".".join(re.search(r"LAM_VERSION_%s (\d+)" % part, header)[1] for part in parts)


def release():
    return "%s-%s" % (project()["name"], version())


def dist_info():
    return release() + ".dist-info"


def files(licenses=()):
    """{name: bytes} of the files in dist-info, without the licences themselves."""
    return {"METADATA": describe(licenses).encode(), "WHEEL": wheel().encode()}


def entries(licenses):
    """As the archive wants them. licenses: {path under licenses/: bytes}."""
    found = {name: data for name, data in files(sorted(licenses)).items()}
    found.update(("licenses/" + name, data) for name, data in licenses.items())
    return {"%s/%s" % (dist_info(), name): archive.Entry(data) for name, data in found.items()}


def describe(licenses):
    about = project()
    extras = about["optional-dependencies"]
    lines = [
        ("Metadata-Version", "2.4"),
        ("Name", about["name"]),
        ("Version", version()),
        ("Summary", about["description"]),
        ("License-Expression", about["license"]),
        *(("License-File", name) for name in licenses),
        ("Requires-Python", about["requires-python"]),
        *(("Requires-Dist", needed) for needed in about["dependencies"]),
        *(("Provides-Extra", extra) for extra in extras),
        *(
            ("Requires-Dist", '%s; extra == "%s"' % (needed, extra))
            for extra in extras
            for needed in extras[extra]
        ),
        ("Description-Content-Type", "text/markdown"),
    ]
    head = "".join("%s: %s\n" % line for line in lines)
    return head + "\n" + (ROOT / about["readme"]).read_text()


def wheel():
    lines = ["Wheel-Version: 1.0", "Generator: lamella", "Root-Is-Purelib: false"]
    return "\n".join([*lines, "Tag: " + contents.TAG]) + "\n"
