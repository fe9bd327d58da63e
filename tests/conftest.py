"""For all Python tests.

A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C: they
hear it as at a terminal.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
