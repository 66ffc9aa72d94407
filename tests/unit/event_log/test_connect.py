"""The URLs of event logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.topics import COMPACTED, FEEDBACK, ITEMS


@pytest.mark.parametrize(
    "url",
    [
        "kafka://me:s3cret@host:9092",
        "kafka://host:9092,me:s3cret@host:9092",
        "kafka://host:9092/s3cret",
        "kafkas://me:s3cret@host",
        "me:s3cret@host:9092",
    ],
)
def test_a_password_in_the_url_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(ValueError, match="kafka://host:port") as refusal:
        connect(EventLogSettings(url=url), None)
    assert "s3cret" not in str(refusal.value)


def test_the_items_are_compacted_and_what_users_did_is_not(tmp_path: Path) -> None:
    log = connect(EventLogSettings(url=f"log://{tmp_path}", partitions=3), None)
    assert log.partitions(ITEMS) == 1
    assert log.partitions(FEEDBACK) == 3
    assert frozenset({ITEMS}) == COMPACTED
    log.close()


@pytest.mark.parametrize("url", ["", "run/events", "redis://x", "log://", "kafka://"])
def test_an_unknown_url_is_refused_with_the_two_that_are_known(url: str) -> None:
    with pytest.raises(ValueError, match="log://path or kafka://host:port"):
        connect(EventLogSettings(url=url), None)
