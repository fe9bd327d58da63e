"""Commands that tests of the wheel run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def run(*command, **kwargs):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments, **kwargs):
    return run(sys.executable, "-m", "pip", "--no-input", *arguments, **kwargs)
