"""Writes a wheel: a zip file with a list of its files and their hashes.

Invariant: equal contents give equal bytes: files are sorted, and have neither times nor owners.
Leaves names and contents to its caller.
"""

import base64
import hashlib
import zipfile
from collections import namedtuple

Entry = namedtuple("Entry", "data mode", defaults=(0o644,))

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can say
REGULAR = 0o100000


def write(path, files, dist_info):
    """files: {path in the archive: Entry}. The list is the last file, as the format wants it."""
    record = dist_info + "/RECORD"
    lines = [line(name, files[name].data) for name in sorted(files)] + [record + ",,\n"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            add(archive, name, files[name])
        add(archive, record, Entry("".join(lines).encode()))


def line(name, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return "%s,sha256=%s,%d\n" % (name, digest, len(data))


def add(archive, name, entry):
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr = (REGULAR | entry.mode) << 16
    info.create_system = 3  # Unix, so that the mode counts
    archive.writestr(info, entry.data, zipfile.ZIP_DEFLATED)
