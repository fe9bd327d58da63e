"""What all commands share: the tree's root, and the package's own words for messages and problems."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "bindings/python")
if PACKAGE not in sys.path:
    sys.path.insert(0, PACKAGE)  # before an installed package of the same name

from lamella.command import Problem, say  # noqa: E402

__all__ = ["PACKAGE", "ROOT", "Problem", "say"]
