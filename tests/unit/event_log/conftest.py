"""An embedded log that is open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.event_log.embedded import EmbeddedEventLog
from tests.unit.event_log.embedded_logs import open_log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedEventLog]:
    opened = open_log(tmp_path)
    yield opened
    opened.close()
