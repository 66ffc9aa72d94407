"""A published model where something else is declared than it was trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.artifact import ArtifactError
from models.schema.inputs import reads_of
from models.serving import load_ranking
from tests.artifacts import publish
from tests.unit.models.ranking.declared import USERS, domain, ranking_of, read

SHOP = """\
format: 1
events:
  click: {id: 2, history: true}
  cart: {id: 3, history: true}
  buy: {id: 4, value: {unit: EUR}}
user:
  given: {country: {type: category, values: [DE, FR]}, born: {type: number}}
  counts: {click: {half_lives: [none, 30d]}}
  affinities: {category: {by: [click]}}
item:
  fields: {category: {type: category, values: [shoes, hats]}, price: {type: number}}
  counts: {click: {half_lives: [7d]}}
derived: {idle: {since: cart}, fits: {match: category}, page: {surface: true}}
context: {device: {type: category, values: [phone, desktop]}}
tasks: {click: {event: click}}
value: {formula: click}
surfaces: {home: {}, cart: {}}
"""
LESS: list[tuple[str, str, str]] = [
    ("half_lives: [none, 30d]", "half_lives: [none]", "count_2_2592000s of profile"),
    ("half_lives: [none, 30d]", "half_lives: [none, 31d]", "count_2_2592000s of profile"),
    ("half_lives: [7d]", "half_lives: [8d]", "count_2_604800s of counters"),
    ("since: cart", "since: buy", "last_3_ms of profile"),
    (", born: {type: number}", "", "born of given"),
    ("born: {type: number}", "born: {type: flag}", "born of given"),
    ("born: {type: number}", "born: {type: numbers, length: 2}", "born of given"),
    ("by: [click]", "by: [buy]", r"affinity\.category\.category\.2 of profile"),
    ("[shoes, hats]", "[shoes]", r"affinity\.category\.category\.2 of profile"),
    ("[shoes, hats]", "[hats, shoes]", r"user\.category by other values"),
    ("[DE, FR]", "[FR, DE]", r"given\.country by other values"),
    ("[DE, FR]", "[DE]", r"given\.country by other values"),
    ("values: [DE, FR]", "hashed: 9", "country of given"),
    ("cart: {id: 3, history: true}", "cart: {id: 3}", "histories of other events"),
    ("click: {id: 2", "click: {id: 9", "count_2 of profile"),
    ("device: {type: category, values: [phone, desktop]}", "", "device of context"),
    ("[phone, desktop]", "[desktop, phone]", r"context\.device by other values"),
    (", page: {surface: true}", "", r"\(surface\) of context"),
    ("{home: {}, cart: {}}", "{cart: {}, home: {}}", "page by other values"),
]
MORE = [
    ("click: {id: 2, history: true}", "click: {id: 2, history: true}\n  share: {id: 9}"),
    ("cart: {id: 3, history", "seen: {id: 7, history: true}\n  cart: {id: 3, history"),
    ("[DE, FR]", "[DE, FR, IT]"),
    ("[shoes, hats]", "[shoes, hats, bags]"),
    ("[phone, desktop]", "[phone, desktop, car]"),
    ("cart: {}}", "cart: {}, page: {}}"),
    ("half_lives: [none, 30d]", "half_lives: [7d, none, 30d]"),
    ("half_lives: [7d]", "half_lives: [1d, 7d]"),
    ("born:", "city: {type: category, hashed: 9}, born:"),
    ("price:", "brand: {type: category, learned: 9}, price:"),
    (", price: {type: number}", ""),  # items' own fields travel with the model
    ("price: {type: number}", "price: {type: number, scale: log}"),
    ("derived: {", "derived: {all: {pool: [any]}, "),
    ("tasks: {", "tasks: {buys: {event: buy}, "),
    ("affinities: {", "affinities: {more: {of: category, by: [cart]}, "),
]


def _changed(old: str, new: str) -> Any:
    assert SHOP.count(old) == 1, old
    return read(SHOP.replace(old, new))


def _published(tmp_path: Path) -> tuple[Any, Path]:
    own = domain(read(SHOP))
    model = ranking_of("dnn", own)
    version = publish(tmp_path, "dnn", model, own.items, own.schema)
    return model, tmp_path / "dnn" / "versions" / version


@pytest.mark.parametrize(("old", "new", "message"), LESS)
def test_a_model_is_refused_where_something_that_it_reads_is_not_declared_so(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    _, folder = _published(tmp_path)
    with pytest.raises(ArtifactError, match=rf"schema\.json: .*{message}"):
        load_ranking(folder, schema=_changed(old, new))


@pytest.mark.parametrize(("old", "new"), MORE)
def test_a_model_serves_where_more_is_declared_than_it_reads(
    old: str, new: str, tmp_path: Path
) -> None:
    """It answers as before: what it reads lies in the wider rows as it did."""
    model, folder = _published(tmp_path)
    schema = _changed(old, new)
    loaded = load_ranking(folder, schema=schema).model
    before = domain(read(SHOP))
    records = {}
    for group in ("profile", "given"):
        narrow = getattr(before.users, group)
        wide = np.zeros(USERS, getattr(schema.layout, group).dtype)
        for column in narrow.dtype.names:
            if narrow[column].ndim > 1:
                wide[column][:, : narrow[column].shape[1]] = narrow[column]
            else:
                wide[column] = narrow[column]
        records[group] = wide
    users, arguments = replace(before.users, **records), before.rows(model)
    found = loaded.score(loaded.user_part(users), *arguments)
    assert torch.equal(found, model.score(model.user_part(before.users), *arguments))


@pytest.mark.parametrize(
    ("read_by", "match", "part", "there"),
    [
        ("both", "none", "retrieval", True),
        ("ranking", "both", "retrieval", False),
        ("retrieval", "none", "ranking", False),
        ("none", "both", "ranking", True),  # what is matched must be known
    ],
)
def test_an_affinity_is_read_by_whom_it_is_declared_for(
    read_by: str, match: str, part: Any, there: bool
) -> None:
    text = SHOP.replace("by: [click]", f"by: [click], models: {read_by}")
    schema = read(text.replace("{match: category}", f"{{match: category, models: {match}}}"))
    found = reads_of(schema.declaration, schema.layout, part, {"item": 3})
    assert any(source.how == "shares" for source in found.sources) == there
