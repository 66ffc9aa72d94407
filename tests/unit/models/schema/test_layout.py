"""Rows of a declaration: what is kept, by which names, and what its hashes tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.worlds.films import movielens
from models.data.worlds.films import schema as films
from models.schema import lock
from models.schema.layout import column_of, layout_of, value_id
from models.schema.read import parse
from tests.unit.models.schema.declared import shop

FILMS = Path(movielens.__file__).with_name("schema.yaml")
PAGE = Path(__file__).parents[4] / "docs" / "schema.md"


def dtypes(group: np.dtype) -> dict[str, str]:
    return {name: str(group[name].base) + str(list(group[name].shape)) for name in group.names}


def test_counts_are_columns_by_event_id_and_half_life() -> None:
    profile = layout_of(shop()).profile.dtype
    assert dtypes(profile) == {
        "count_2": "uint32[]",
        "count_2_2592000s": "float64[]",
        "count_6": "uint32[]",
        "sum_6": "float64[]",
        "last_event_ms": "int64[]",
        "last_6_ms": "int64[]",
        "affinity.category.category.2_6_7776000s": "float32[3]",
    }
    assert list(layout_of(shop()).counters.dtype.names or ()) == [
        "count_2_2592000s",
        "count_6",
        "as_of_ms",
    ]


def test_fields_are_stored_as_ids_and_numbers() -> None:
    layout = layout_of(shop())
    assert dtypes(layout.given.dtype) == {"country": "uint16[]"}
    assert dtypes(layout.item.dtype) == {
        "brand": "uint64[]",
        "price": "float32[]",
        "category": "uint16[4]",
        "text": "float16[8]",
        "words": "uint32[6]",
        "sizes": "float32[3]",
        "released": "int64[]",
        "in_stock": "uint8[]",
    }
    item = layout.item.defaults()
    assert item["price"] == 9.5
    assert item["in_stock"] == 1
    assert item["brand"] == 0


def test_a_value_has_its_place_and_an_undeclared_one_is_unknown() -> None:
    declared = shop()
    (country,) = declared.user_given
    brand = declared.item_field["brand"]
    assert [value_id(country, text) for text in ("DE", "NO", "no", "")] == [1, 3, 0, 0]
    assert value_id(brand, "Acme") not in (0, value_id(brand, "acme"))
    (device,) = declared.context
    assert column_of(device).default == 1


def test_an_affinity_to_other_values_is_another_column() -> None:
    declared = shop(
        ("category: {by: [click, purchase]", "category: {of: hat, by: [click, purchase]"),
        ("    sizes: {type: numbers, length: 3}", "    hat: {type: category, values: [fez]}"),
    )
    before, now = (set(layout_of(each).profile.dtype.names or ()) for each in (shop(), declared))
    assert before - now == {"affinity.category.category.2_6_7776000s"}
    assert now - before == {"affinity.category.hat.2_6_7776000s"}


def test_films_keep_what_the_first_version_kept() -> None:
    """Its layouts stand first in their lock, with the names that their columns have now."""
    first = lock.read(films.FILE.with_name(lock.NAME)).layouts[:3]
    assert [group.name for group in first] == ["profile", "history", "counters"]
    for group in first:
        now = films.GROUPS[group.name].dtype
        there = {feature.name_now: group.dtype[feature.name] for feature in group.features}
        since = {"count_2", "count_3"} if group.name == "counters" else set()
        assert since.isdisjoint(there)
        of_then = {name: now[name] for name in now.names or () if name not in since}
        assert of_then.items() <= there.items()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[click, purchase], half_life: 90d", "[click, purchase], half_life: 91d"),
        ("[click, purchase], half_life", "[purchase], half_life"),
        ('[DE, FR, "NO"]', '[FR, DE, "NO"]'),
        ("values: [shoes, hats]", "values: [hats, shoes]"),
        ("upgrades: [click]", "upgrades: []"),
        ("price: {type: number, scale: log, default: 9.5}", "price: {type: flag}"),
        ("length: 40", "length: 41"),
        ("hashed: 5000", "values: [acme]"),
    ],
)
def test_the_revision_tells_layouts_and_meanings_apart(old: str, new: str) -> None:
    assert layout_of(shop((old, new))).revision != layout_of(shop()).revision


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale: log", "scale: quantiles"),
        ("hashed: 5000", "hashed: 6000"),
        ("display: [title]", "display: [title, url]"),
        ("click * purchase", "click + purchase"),
    ],
)
def test_what_rows_do_not_hold_does_not_change_the_revision(old: str, new: str) -> None:
    assert layout_of(shop((old, new))).revision == layout_of(shop()).revision


def test_the_example_of_the_docs_is_a_declaration() -> None:
    example = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    declared = parse(example.encode(), "schema.yaml")
    assert [task.name for task in declared.tasks] == ["click", "purchase", "spend"]
    assert len(layout_of(declared).item.features) == len(declared.item_fields)
