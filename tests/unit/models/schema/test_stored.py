"""How values are stored: what is missing is the declared default, however much of it is missing."""

from __future__ import annotations

import polars as pl
import pytest

from models.schema.layout import layout_of
from models.schema.stored import records
from tests.unit.models.schema.shop import DECLARATION

LAYOUT = layout_of(DECLARATION)


@pytest.mark.parametrize(
    "values",
    [{}, {"in_stock": [None, None]}, {"price": [1.0, 2.0]}],
    ids=["no column at all", "a column of nulls", "other columns"],
)
def test_a_field_that_nothing_says_anything_of_has_its_default(
    values: dict[str, list[object]],
) -> None:
    frame = pl.DataFrame({"item_id": ["a", "b"], **values})
    found = records(LAYOUT.item, DECLARATION.item_fields, frame)
    assert found["in_stock"].tolist() == [1, 1]
    assert found["brand"].tolist() == [LAYOUT.item.defaults()["brand"]] * 2
