"""What a wheel holds: the Python package, its stubs, the native files, and what those need.

What a native file needs is read from the file itself. What every Linux system with C++ programs has
stays outside; the rest (oneDNN, which is opened at run time, and what it and the others link) goes
in as Debian built it, each with its licence.
Invariant: a wheel that was made has everything that its native files need.
Leaves finding these files at run time to liblamella.so.0, which looks beside itself first.
"""

import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from bindings.cli.common import ROOT, Problem
from bindings.wheel import stubs
from bindings.wheel.archive import Entry

TAG = "py3-none-" + re.sub(r"\W", "_", sysconfig.get_platform())
PACKAGE = ROOT / "bindings/python/lamella"
TARGETS = {  # what Bazel builds, and where it puts it
    "//abi:liblamella.so.0": "abi/liblamella.so.0",
    "//abi:cuda": "abi/liblamella_cuda.so.0",  # where there is a CUDA toolkit
    "//bindings/python/native:lamella_python.so": "bindings/python/native/lamella_python.so",
    "//bindings/torch:lamella_torch.so": "bindings/torch/lamella_torch.so",
    "//bindings/xla:liblamella_xla.so": "bindings/xla/liblamella_xla.so",
}
OPENED = ["libdnnl.so.2"]  # at run time, so that no native file names it
SYSTEM = re.compile(r"ld-linux.*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+")
DOCUMENTS = Path("/usr/share/doc")
COMMON = Path("/usr/share/common-licenses")


def package(bin_dir):
    """{path: Entry} of everything under lamella/."""
    files = {"lamella/%s" % p.relative_to(PACKAGE): Entry(p.read_bytes()) for p in sources()}
    stubbed = stubs.files().items()
    files.update(("lamella/" + path, Entry(data)) for path, data in stubbed)
    built = [path for path in map(bin_dir.joinpath, TARGETS.values()) if path.exists()]
    native = {path.name: Entry(stripped(path), 0o755) for path in built}
    native.update((path.name, Entry(path.read_bytes(), 0o755)) for path in companions(built))
    files.update(("lamella/lib/" + name, entry) for name, entry in native.items())
    return files


def sources():
    return [p for kind in ("*.py", "*.pyi", "py.typed") for p in PACKAGE.rglob(kind)]


def stripped(path):
    """Without the debugging information, which is most of the file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.name
        output("strip", "--strip-debug", "-o", out, path)
        return out.read_bytes()


def companions(built):
    """The machine's libraries that `built` and what is opened need, and those need in turn."""
    have, found = {path.name for path in built}, {}
    wanted = [*OPENED, *(name for path in built for name in needed(path))]
    while wanted:
        name = wanted.pop()
        if name not in have | set(found) and not SYSTEM.fullmatch(name):
            found[name] = library(name)
            wanted += needed(found[name])
    return [found[name] for name in sorted(found)]


def needed(path):
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", path))


def library(name):
    """Where the loader finds it; its own name stays, whatever version the file is of."""
    listed = re.search(r"^\s*%s \(libc6,x86-64\) => (.*)" % re.escape(name), loadable(), re.M)
    if not listed:
        raise Problem("%s is missing and the wheel carries it; run ./lamella setup build" % name)
    return Path(listed[1])


def loadable():
    return output("/sbin/ldconfig", "-p")


def licenses(files):
    """{path: bytes}: Lamella's licence, and those of the Debian packages that a file is from."""
    found = {"LICENSE": (ROOT / "LICENSE").read_bytes()}
    ours = {Path(path).name for path in TARGETS.values()}
    names = {Path(path).name for path in files if path.startswith("lamella/lib/")} - ours
    for owner in sorted(set(map(debian_package, names))):
        text = (DOCUMENTS / owner / "copyright").read_bytes()
        found["debian/%s/copyright" % owner] = text
        for name in re.findall(rb"/usr/share/common-licenses/([\w.-]*\w)", text):
            common = COMMON / name.decode()
            found["debian/common-licenses/%s" % common.name] = common.read_bytes()
    return found


def debian_package(name):
    path = library(name).resolve()
    try:
        return output("dpkg", "-S", path).split(":")[0]
    except (Problem, FileNotFoundError):
        words = "%s is of no Debian package: the wheel must carry its licence"
        raise Problem(words % path) from None


def output(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem("%s: %s" % (" ".join(map(str, command)), done.stderr.strip()))
    return done.stdout
