"""What travels to the model services of a user's rows."""

from __future__ import annotations

from typing import Any

import pytest

from feature_store import codec
from models.catalogue import ItemTable
from models.schema.compiled import Schema
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.router.hydrate import hydrate
from services.router.recent_feedback import RecentFeedback
from services.router.request import Budget, Request
from services.router.user_rows import UserRows
from tests.domains import FILMS
from tests.revisions import AFTER, BEFORE, READS_BOTH

NOW_MS = 1_900_000_000_000


def profile_of(schema: Schema) -> bytes:
    record = schema.layout.profile.defaults()
    record["count_2"], record["last_event_ms"] = 9, NOW_MS
    return codec.encode(schema.layout.profile, record, NOW_MS, 1)


class Rows:
    def __init__(self, profile: bytes) -> None:
        self.profile = profile

    async def read_async(self, keys: Any, timeout_s: float) -> list[bytes | None]:
        return [self.profile, None]


@pytest.mark.parametrize("schema", [BEFORE, READS_BOTH, AFTER], ids=["old", "waiting", "writing"])
async def test_rows_travel_as_they_are_stored(items: ItemTable, schema: Schema) -> None:
    """A replica that does not know the router's revision reads what its own updaters wrote."""
    stored = profile_of(BEFORE)
    request = Request(
        RecommendRequest(user_id="u"), "r", NOW_MS, Budget(1.0),
        Assigner(config_reader.parse(b"version: 1\nlayers: []\n", "none.yaml", FILMS)),
    )  # fmt: skip
    recent = RecentFeedback(schema, lambda: items)
    rows: Any = Rows(stored)
    user = await hydrate(request, UserRows(schema), rows, recent, 1.0)
    assert user.counts == (0, 9, 0)
    assert user.context["profile_row"] == stored
    assert user.context["history_row"] == b""
