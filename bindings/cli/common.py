"""What all commands share: the tree's root, messages, the one kind of error that a user sees."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Problem(Exception):
    """Something the user can understand and mend. Shown as one message, without a traceback."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def say(message):
    """To the user, beside the result: results go to stdout, everything else here."""
    print("lamella: " + message, file=sys.stderr, flush=True)
