"""What replicas make of the rows that routers send."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store import codec
from models.catalogue import ItemTable
from models.schema.films import HISTORY, ITEM_DTYPE, PROFILE, SCHEMA
from protos.tandem.v1.features_pb2 import UserContext
from services.common.model_service.user_context import batch_of_users


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        (codec.encode(PROFILE, PROFILE.defaults(), 1, 1), 0),
        (b"", 0),  # a new user
        (codec.encode(HISTORY, HISTORY.defaults(), 1, 1), 1),  # another schema
        (b"torn", 1),
    ],
)
def test_a_row_that_cannot_be_read_is_served_as_defaults_and_counted(
    row: bytes, counted: int
) -> None:
    def unreadable() -> float:
        name = "tandem_user_rows_unreadable_total"
        return REGISTRY.get_sample_value(name, {"group": "profile"}) or 0

    items = ItemTable.build(["a"], np.zeros(1, ITEM_DTYPE))
    before = unreadable()
    batch_of_users([UserContext(profile_row=row, now_ms=5)], SCHEMA.layout, items, 50)
    assert unreadable() - before == counted
