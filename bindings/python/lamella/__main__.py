"""python -m lamella COMMAND: what a program that uses the package needs beside it."""

import sys

from lamella import command

COMMANDS = [
    # name, module, one line
    ("doctor", "lamella.doctor", "what Lamella finds here: library, oneDNN, hosts, launcher"),
    ("run", "lamella.run", "start N copies of a program as the ranks of one group"),
]

if __name__ == "__main__":
    sys.exit(command.main("python -m lamella", COMMANDS, sys.argv[1:]))
