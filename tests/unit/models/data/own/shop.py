"""A shop that uses every key of a schema.yaml, and a past of it."""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl

from models.data.events import Dataset
from models.data.own import dataset as own_dataset
from models.schema.compiled import compiled
from tests.unit.models.schema.shop import DECLARATION

SHOP = compiled(DECLARATION)
MINUTE, DAY = 60_000, 86_400_000
START = 1_700_000_000_000


@cache
def tables(users: int = 40, items: int = 40, visits: int = 25, seed: int = 0) -> Dataset:
    """A shop in which each user buys of one category."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for visit in range(visits):
            at = START + int(rng.integers(0, 60)) * DAY + visit * MINUTE
            item = int(rng.integers(items))
            mine = item % 2 == user % 2
            rows.append((f"u{user}", f"i{item}", "impression", at, None))
            if rng.random() < (0.8 if mine else 0.2):
                rows.append((f"u{user}", f"i{item}", "click", at + MINUTE, None))
                if rng.random() < (0.6 if mine else 0.2):
                    price = 10.0 + item
                    rows.append((f"u{user}", f"i{item}", "purchase", at + 2 * MINUTE, price))
                    if rng.random() < 0.3:
                        rows.append((f"u{user}", f"i{item}", "return", at + 9 * MINUTE, 1.0))
    events = pl.DataFrame(
        rows, ["user_id", "item_id", "event", "time_ms", "value"], orient="row",
        infer_schema_length=None,
    )  # fmt: skip
    catalogue = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(items)],
            "brand": [None if i % 5 == 0 else f"brand {i % 7}" for i in range(items)],
            "shade": [f"shade {i % 3}" for i in range(items)],
            "category": [[("Shoes", "Hats & Caps")[i % 2]] for i in range(items)],
            "countries": [["DE", "NO", "FR"][: i % 4] for i in range(items)],
            "price": [10.0 + i for i in range(items)],
            "stars": [float(i % 5) for i in range(items)],
            "in_stock": [i % 9 > 0 for i in range(items)],
            "released": [START - i * DAY for i in range(items)],
            "image": [list(np.full(384, i / items)) for i in range(items)],
            "text": [f"a thing of kind {i % 4}" for i in range(items)],
            "sizes": [[1.0, 2.0, float(i)] for i in range(items)],
        }
    )
    given = pl.DataFrame(
        {"user_id": [f"u{i}" for i in range(0, users, 2)], "country": ["DE"] * (users // 2)}
    )
    return own_dataset.build("shop", SHOP, events, catalogue, given)
