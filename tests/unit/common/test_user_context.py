"""What replicas make of the rows that routers send."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from feature_store import codec
from models.catalogue import ItemTable
from models.data.events import CONTEXT
from models.data.worlds.films.schema import HISTORY, ITEM_DTYPE, PROFILE, SCHEMA
from models.schema.compiled import compiled
from models.schema.declaration import Field
from models.schema.layout import SURFACE
from models.training.replay import context_records
from protos.tandem.v1.features_pb2 import UserContext
from services.common.model_service.user_context import batch_of_users
from tests.unit.models.schema.declarations import declarations


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
    batch_of_users([UserContext(profile_row=row, now_ms=5)], SCHEMA, items, 50)
    assert unreadable() - before == counted


@given(st.data())
def test_what_comes_with_a_request_is_read_as_in_training(data: st.DataObject) -> None:
    """Any declaration: the same values by an imported table and by a message."""
    schema = compiled(data.draw(declarations()))
    surfaces = [surface.name for surface in schema.declaration.surfaces]
    surface = data.draw(st.sampled_from([*surfaces, "elsewhere"]))
    row: dict[str, Any] = {SURFACE: surface}
    numbers, texts = {}, {}
    for field in schema.declaration.context:
        value = data.draw(st.none() | _sent(field))
        row[CONTEXT + field.name] = value
        if isinstance(value, str):
            texts[field.name] = value
        elif value is not None:
            numbers[field.name] = float(value)
    trained = context_records(schema, pl.DataFrame([row]))
    blanks = {name: f" {text}\n" for name, text in texts.items()}
    message = UserContext(surface=surface, context=numbers, context_text=blanks, now_ms=5)
    items = ItemTable.build(["a"], np.zeros(1, schema.layout.item.dtype))
    served = batch_of_users([message, UserContext()], schema, items, 5).context
    assert served[:1].tobytes() == trained.tobytes()
    assert served[1:].tobytes() == np.full(1, schema.layout.context.defaults()).tobytes()


def _sent(field: Field) -> st.SearchStrategy[Any]:
    if field.type in ("category", "text"):
        listed = field.vocabulary.values if field.vocabulary else ()
        # An import has taken the blanks off.
        free = st.text(max_size=20).map(str.strip).filter(bool)
        return st.sampled_from(listed) if listed else free
    if field.type == "flag":
        return st.booleans()
    return st.integers(10**11, 10**12) if field.type == "time" else st.floats(-1e9, 1e9)
