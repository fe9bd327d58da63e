"""For all Python tests.

A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C: they
hear it as at a terminal. torch.compile starts no processes to compile in: every processor has tests
of its own to run.
"""

import os
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
