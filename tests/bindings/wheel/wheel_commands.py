"""Commands that tests of the wheel run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def status_and_output(*command, **kwargs):
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **kwargs)
    return done.returncode, done.stdout + done.stderr


def run(*command, **kwargs):
    """What a command that ends well says on stdout."""
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments, **kwargs):
    return run(sys.executable, "-m", "pip", "--no-input", *arguments, **kwargs)
