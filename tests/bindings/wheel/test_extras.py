"""What pip resolves the wheel's extras to, by its metadata alone: from a folder of empty wheels that are
called as the hosts are, and nothing is installed."""

import json
import os
import sys

import pytest

from bindings.wheel import archive
from wheel_commands import status_and_output

OLD = {"torch": ["2.9.1"], "jax": ["0.9.2"], "jaxlib": ["0.9.2"]}
NEW = {"torch": ["2.10.0", "2.13.0"], "jax": ["0.10.2"], "jaxlib": ["0.10.2"]}
FORMAT = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
RESOLVE = ["install", "--dry-run", "--ignore-installed", "--no-index", "--quiet"]
# Nobody's own wheels: of pip's settings none but those of the command line.
BARE = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
BARE["PIP_CONFIG_FILE"] = os.devnull


def write_empty(folder, name, version):
    """jax of a version needs jaxlib of the same, as the real one does."""
    lines = ["Metadata-Version: 2.1", "Name: " + name, "Version: " + version]
    lines += ["Requires-Dist: jaxlib==" + version] if name == "jax" else []
    about = "%s-%s.dist-info" % (name, version)
    texts = {about + "/METADATA": "\n".join(lines) + "\n", about + "/WHEEL": FORMAT}
    files = {path: archive.Entry(text.encode()) for path, text in texts.items()}
    archive.write(folder / ("%s-%s-py3-none-any.whl" % (name, version)), files, about)


def index(folder, *releases):
    for name, versions in (item for release in releases for item in release.items()):
        for version in versions:
            write_empty(folder, name, version)
    return folder


def resolve(folder, requirement):
    """What pip says, and {name: version} of what it would install; None where it refuses."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "pip", *RESOLVE, "--find-links", folder, "--report", report]
    status, said = status_and_output(*command, requirement, env=BARE)
    if status:
        return said, None
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return said, {about["name"]: about["version"] for about in found}


@pytest.mark.parametrize(
    "extras, hosts",
    [
        ("", {}),
        ("[torch]", {"torch": "2.13.0"}),
        ("[jax]", {"jax": "0.10.2", "jaxlib": "0.10.2"}),
        ("[jax,torch]", {"torch": "2.13.0", "jax": "0.10.2", "jaxlib": "0.10.2"}),
    ],
)
def test_pip_installs_the_hosts_that_the_extras_name(wheel, tmp_path, extras, hosts):
    said, found = resolve(index(tmp_path, OLD, NEW), "%s%s" % (wheel, extras))
    assert found == {"lamella": wheel.name.split("-")[1], **hosts}, said


@pytest.mark.parametrize("host, needed, there", [("torch", "2.10", "2.9.1"), ("jax", "0.10", "0.9.2")])
def test_pip_refuses_a_host_that_is_too_old(wheel, tmp_path, host, needed, there):
    said, found = resolve(index(tmp_path, OLD), "%s[%s]" % (wheel, host))
    assert found is None
    assert "No matching distribution found for %s>=%s" % (host, needed) in said
    assert "(from versions: %s)" % there in said
