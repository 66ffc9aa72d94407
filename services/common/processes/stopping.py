"""Signals that end a process: taken on a thread of their own, whatever the main thread does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection


def stop_on_sigterm(stop: threading.Event) -> None:
    """Set `stop` when SIGTERM comes: workers finish what is at hand, then end."""
    on_signals({signal.SIGTERM}, stop.set)


def on_signals(numbers: Collection[signal.Signals], act: Callable[[], None]) -> threading.Thread:
    """Call `act` once, on the thread that is returned, when one of the signals comes.

    Call it on the main thread. A Python signal handler runs on the main thread between any two of
    its steps: never, while that thread waits inside a library's own code; and `Event.set` there
    deadlocks when that thread, or an earlier signal, is just holding the event's lock. So the
    handler does nothing: the interpreter writes the signal's number into a pipe, and another
    thread reads it and acts.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    silence(numbers)

    def wait() -> None:
        while not set(numbers).intersection(os.read(reader, 64)):
            pass
        act()

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    return thread


def silence(numbers: Collection[signal.Signals]) -> None:
    """Have the signals do nothing on the main thread; again after a library took them over."""
    for number in numbers:
        signal.signal(number, lambda *_: None)
