"""The launcher script on a machine without python3: what it says, installs and hands over to."""

import os
import shutil
import subprocess
import sys

import pytest

from bindings.cli.common import ROOT

SYSTEMS = "/usr/bin/python3"
OWN = ["sh", "readlink", "dirname", "mktemp", "tail", "rm", "cat", "touch", "chmod"]
USER, ADMINISTRATOR = "echo 1000", "echo 0"
INSTALLING = "lamella: installing python3, once\n"


@pytest.fixture
def machine(tmp_path):
    """A copy of the script that takes ./python3 for the system's, and a PATH without one."""
    script = (ROOT / "lamella").read_text()
    assert script.count(SYSTEMS) == 2
    write(tmp_path / "lamella", script.replace(SYSTEMS, str(tmp_path / "python3")))
    for folder in ("bin", "tmp"):
        (tmp_path / folder).mkdir()
    for name in OWN:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


def write(path, text):
    path.write_text(text)
    path.chmod(0o755)


def start(machine, **programs):
    """What `lamella doctor --json` gives where these programs are, too: status, stdout, stderr."""
    for name, script in programs.items():
        write(machine / "bin" / name.replace("_", "-"), "#!/bin/sh\n%s\n" % script)
    env = {"PATH": str(machine / "bin"), "TMPDIR": str(machine / "tmp"), "HERE": str(machine)}
    command = [machine / "lamella", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert os.listdir(machine / "tmp") == []  # no log stays behind
    return done.returncode, done.stdout, done.stderr


# Installs a python3 that says how it was called, from a list that has to be read where it is stale.
APT = """
echo "apt-get $* ($DEBIAN_FRONTEND)" >>"$HERE/asked"
case "$1" in
  update) touch "$HERE/updated"; exit 0 ;;
esac
%s
printf '#!/bin/sh\\necho "$@"\\n' >"$HERE/python3"
chmod +x "$HERE/python3"
echo "Setting up python3"
"""
STALE = APT % 'if [ ! -e "$HERE/updated" ]; then echo "E: Unable to locate python3"; exit 100; fi'
INSTALL, UPDATE = "install -y -q python3", "update -q"


def asked(machine):
    return (machine / "asked").read_text().splitlines()


def handed_over(machine):
    return "-B %s/bindings/cli/main.py doctor --json\n" % machine


def test_without_apt_get_it_says_what_it_needs(machine):
    said = "lamella: needs python3, 3.9 or newer; no apt-get here\n"
    assert start(machine, id=ADMINISTRATOR) == (1, "", said)


def python_that_is(version):
    """Asked with -c, it answers for this version; else it says how it was called."""
    ask = 'exec %s -c "import sys; sys.version_info = %s; $2"' % (sys.executable, version)
    return '[ "$1" != -c ] || %s\necho "$@"' % ask


@pytest.mark.parametrize("place", ["the system's", "in PATH"])
def test_a_python3_older_than_3_9_is_none(machine, place):
    folder = machine if place == "the system's" else machine / "bin"
    write(folder / "python3", "#!/bin/sh\n" + python_that_is((3, 8, 20)))
    said = "lamella: needs python3, 3.9 or newer; no apt-get here\n"
    assert start(machine, id=ADMINISTRATOR) == (1, "", said)
    write(folder / "python3", "#!/bin/sh\n" + python_that_is((3, 9, 0)))
    assert start(machine, id=ADMINISTRATOR) == (0, handed_over(machine), "")


def test_a_user_without_sudo_is_told_that_root_installs_it(machine):
    said = "lamella: needs python3, which only root can install\n"
    assert start(machine, id=USER, apt_get=APT % "") == (1, "", said)
    assert not (machine / "asked").exists()


def test_root_installs_it_and_goes_on(machine):
    found = start(machine, id=ADMINISTRATOR, apt_get=APT % "", sudo="echo sudo; exit 1")
    assert found == (0, handed_over(machine), INSTALLING)
    assert asked(machine) == ["apt-get %s (noninteractive)" % INSTALL]


def test_a_user_installs_it_with_sudo(machine):
    sudo = 'echo "sudo $1" >>"$HERE/asked"; exec "$@"'
    found = start(machine, id=USER, apt_get=APT % "", sudo=sudo)
    assert found == (0, handed_over(machine), INSTALLING)
    assert asked(machine) == ["sudo apt-get", "apt-get %s (noninteractive)" % INSTALL]


@pytest.mark.parametrize("user", [USER, ADMINISTRATOR])
def test_stale_lists_are_read_again(machine, user):
    found = start(machine, id=user, apt_get=STALE, sudo='exec "$@"')
    assert found == (0, handed_over(machine), INSTALLING)
    calls = ["apt-get %s (noninteractive)" % words for words in (INSTALL, UPDATE, INSTALL)]
    assert asked(machine) == calls


def test_without_a_network_it_gives_apts_last_words(machine):
    apt = 'for word in 1 2 3 4; do echo "E: $1 $word" >&2; done; exit 100'
    words = "".join("E: update %d\n" % n for n in (2, 3, 4))
    said = INSTALLING + words + "lamella: python3 was not installed: no network?\n"
    assert start(machine, id=ADMINISTRATOR, apt_get=apt) == (1, "", said)
