"""SIGTERM for workers: finish what is at hand, then end."""

from __future__ import annotations

import os
import signal
import threading


def stop_on_sigterm(stop: threading.Event) -> None:
    """Set `stop` when SIGTERM comes. Call it on the main thread.

    A Python signal handler runs on the main thread between any two of its steps; `Event.set` there
    deadlocks when that thread, or an earlier signal, is just holding the event's lock. So the
    handler does nothing: the interpreter writes the signal's number into a pipe, and another
    thread reads it and sets the event.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reader, 64):
            pass
        stop.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()
