"""What holds for every test: hypothesis sets no deadlines, for no test may depend on how busy the
machine is; and all tests that start Ray run in one process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings

settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
