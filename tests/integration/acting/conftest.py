"""An installation for each test that asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.acting.installation import (
    EXPERIMENTS_FILE,
    Installation,
    Start,
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as opened:

        def started(text: str = EXPERIMENTS_FILE) -> Installation:
            installation = Installation(tmp_path, text)
            opened.callback(installation.close)
            return installation

        yield started
