"""Waiting at a start."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from services.common.processes.waiting import Stopped, wait_for


def test_a_start_waits_until_what_it_needs_is_there_and_says_why_it_waits() -> None:
    causes = iter(["refused", "no route"])

    def attempt() -> str:
        for cause in causes:
            raise ConnectionError(cause)
        return "open"

    with capture_logs() as logged:
        found = wait_for("Redis", attempt, threading.Event(), ConnectionError, first_wait_s=0.0)
    assert found == "open"
    assert [(line["what"], line["cause"]) for line in logged] == [
        ("Redis", "refused"),
        ("Redis", "no route"),
    ]


def test_no_waiting_mends_an_error_of_another_kind() -> None:
    def attempt() -> None:
        raise ValueError("a wrong setting")

    with pytest.raises(ValueError, match="wrong setting"):
        wait_for("Redis", attempt, threading.Event(), ConnectionError)


def test_who_is_told_to_stop_waits_no_longer() -> None:
    stop = threading.Event()

    def attempt() -> None:
        stop.set()
        raise ConnectionError("refused")

    with pytest.raises(Stopped, match="Redis"):
        wait_for("Redis", attempt, stop, ConnectionError)
