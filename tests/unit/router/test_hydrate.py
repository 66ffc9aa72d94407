"""What travels to the model services of a user's rows."""

from __future__ import annotations

from typing import Any

import pytest

from feature_store import codec
from models.catalogue import ItemTable
from models.schema.compiled import Schema, compiled
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import CLICK, FeedbackEvent
from services.common.model_service.user_context import batch_of_users
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.router.hydrate import hydrate
from services.router.recent_feedback import RecentFeedback
from services.router.request import Budget, Request
from services.router.user_rows import UserRows, features_of
from tests.domains import FILMS
from tests.revisions import AFTER, BEFORE, READS_BOTH
from tests.unit.models.schema.shop import DECLARATION

NOW_MS = 1_900_000_000_000


def profile_of(schema: Schema) -> bytes:
    record = schema.layout.profile.defaults()
    record["count_2"], record["last_event_ms"] = 9, NOW_MS
    return codec.encode(schema.layout.profile, record, NOW_MS, 1)


class Rows:
    """A store of one user."""

    def __init__(self, **rows: bytes) -> None:
        self.rows = rows

    async def read_async(self, keys: Any, timeout_s: float) -> list[bytes | None]:
        return [self.rows.get(key.group) for key in keys]


def asked() -> Request:
    return Request(
        RecommendRequest(user_id="u"), "r", NOW_MS, Budget(1.0),
        Assigner(config_reader.parse(b"version: 1\nlayers: []\n", "none.yaml", FILMS)),
    )  # fmt: skip


@pytest.mark.parametrize("schema", [BEFORE, READS_BOTH, AFTER], ids=["old", "waiting", "writing"])
async def test_rows_travel_as_they_are_stored(items: ItemTable, schema: Schema) -> None:
    """A replica that does not know the router's revision reads what its own updaters wrote."""
    stored = profile_of(BEFORE)
    request = asked()
    recent = RecentFeedback(schema, lambda: items)
    rows: Any = Rows(profile=stored)
    user = await hydrate(request, UserRows(schema), rows, recent, 1.0)
    assert features_of(user.numbers)["click"] == 9
    assert user.context["profile_row"] == stored
    assert user.context["history_row"] == b""


@pytest.mark.parametrize("acted", [False, True], ids=["at rest", "just acted"])
async def test_what_the_owner_gave_of_a_user_travels_too(items: ItemTable, acted: bool) -> None:
    schema = compiled(DECLARATION)
    record = schema.layout.given.defaults()
    record["country"] = 3
    given = codec.encode(schema.layout.given, record, NOW_MS, 1)
    recent = RecentFeedback(schema, lambda: items)
    if acted:
        recent.add([FeedbackEvent(event_id="e", user_id="u", item_id="m1", event_type=CLICK)])
    rows: Any = Rows(given=given)
    user = await hydrate(asked(), UserRows(schema), rows, recent, 1.0)
    assert user.context["given_row"] == given
    context = UserContext(now_ms=NOW_MS, given_row=given)
    batch = batch_of_users([context, UserContext()], schema, items, 10)
    assert batch.given["country"].tolist() == [3, 2], "NO is the declared default"
