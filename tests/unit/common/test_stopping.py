"""SIGTERM ends a worker in good order, whatever its main thread is just doing."""

from __future__ import annotations

import subprocess
import sys

# The main thread holds the event's lock, as it does for moments inside Event.wait and Event.set.
WORKER = """
import os, signal, threading
from services.common.processes.stopping import stop_on_sigterm
stop = threading.Event()
stop_on_sigterm(stop)
with stop._cond:
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGTERM)
stop.wait()
print("ended")
"""


def test_a_sigterm_while_the_event_is_locked_still_ends_the_worker():
    worker = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, timeout=30)
    assert (worker.returncode, worker.stdout) == (0, b"ended\n")
