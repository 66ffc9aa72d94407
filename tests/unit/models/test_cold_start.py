"""What is served before anything is trained orders items by what it says it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import artifact, cold_start
from models.catalogue import ItemTable
from models.cold_start import ColdStart
from models.data.own.newest import newest_first
from models.inputs import UserBatch
from models.schema import compiled
from models.schema.compiled import Schema
from models.serving import load_ranking, load_retrieval
from tests.unit.models.data.own.domain import NOW_MS, SCHEMA, folder_in

PAST = NOW_MS - 86_400_000
COUNTED = (
    SCHEMA.replace(
        "    in_stock: {type: flag}\n",
        "    in_stock: {type: flag}\n    offered: {type: time}\n"
        "  counts: {click: {half_lives: [30d, 7d]}, purchase: {}}\n",
    )
    .replace(
        "  click: {event: click}\n",
        "  click: {event: click}\n  spend: {event: purchase, target: value, given: click}\n"
        "  keep: {event: keep}\n",
    )
    .replace("user:\n", "  keep: {id: 4}\nuser:\n", 1)
)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    return compiled.load(folder_in(tmp_path_factory.mktemp("shop"), COUNTED) / "schema.yaml")


def table(schema: Schema, *rows: dict[str, Any]) -> ItemTable:
    """Items "0", "1", ... as imported, all of one time: so the last is the newest."""
    types = {
        "brand": pl.String, "kinds": pl.List(pl.String), "words": pl.String,
        "place": pl.List(pl.Float32), "released": pl.Int64, "offered": pl.Int64,
    }  # fmt: skip
    items = [{"item_id": str(i), **dict.fromkeys(types), **row} for i, row in enumerate(rows)]
    return newest_first(schema, pl.DataFrame(items, {"item_id": pl.String, **types}), NOW_MS)


def users(schema: Schema, items: ItemTable, *histories: tuple[str, ...]) -> UserBatch:
    width = schema.declaration.history.models_read
    rows = np.zeros((len(histories), width), np.int64)
    for user, chosen in enumerate(histories):
        rows[user, : len(chosen)] = [items.ids.index(item) for item in chosen]
    of = schema.layout
    blank = (np.zeros(len(rows), group.dtype) for group in (of.profile, of.given, of.context))
    now_ms = np.full(len(rows), NOW_MS)
    return UserBatch(rows, (rows > 0).astype(np.uint8), *blank, now_ms)


def found(model: ColdStart, items: ItemTable, batch: UserBatch) -> list[list[str]]:
    """All items for each user, best first."""
    scores = (model.encode_users(batch)[:, 0] @ model.item_vectors().T)[:, 1:]
    return [[items.ids[1 + i] for i in order] for order in scores.argsort(descending=True).tolist()]


@given(
    st.lists(
        st.none() | st.sampled_from([PAST, PAST - 1, -5, NOW_MS, NOW_MS + 1, 2 * NOW_MS]),
        min_size=1,
        max_size=20,
    )
)
def test_the_newest_item_of_the_past_is_first_then_the_last_imported(
    schema: Schema, times: list[int | None]
) -> None:
    items = table(schema, *({"released": time} for time in times))

    def newness(i: int) -> tuple[bool, int, int]:
        time = times[i]
        said = time is not None and time <= NOW_MS
        return said, (time or 0) if said else 0, i

    wanted = sorted(range(len(times)), key=newness, reverse=True)
    assert items.ids[1:] == [str(i) for i in wanted]
    model = ColdStart.of(schema, items)
    assert found(model, items, users(schema, items, ())) == [items.ids[1:]]


def test_of_several_times_the_one_that_began_says_what_is_new(schema: Schema) -> None:
    ends = [PAST, NOW_MS + 1, NOW_MS + 2]
    began = [PAST - 3, PAST - 1, PAST - 2]
    rows = ({"released": end, "offered": begin} for end, begin in zip(ends, began, strict=True))
    assert table(schema, *rows).ids[1:] == ["1", "2", "0"]
    without = pl.DataFrame({"item_id": ["0", "1"]})
    assert newest_first(schema, without, NOW_MS).ids[1:] == ["1", "0"], "by import"


@pytest.mark.parametrize(
    ("field", "mine", "other"),
    [
        ("brand", "acme", "zeta"),
        ("kinds", ["hats", "coats"], ["shoes"]),
        ("words", "blue hat", "red shoes"),
        ("place", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    ],
)
def test_a_user_is_shown_what_is_like_the_history_before_what_is_new(
    schema: Schema, field: str, mine: Any, other: Any
) -> None:
    items = table(schema, *({field: mine if i < 4 else other} for i in range(12)))
    model = ColdStart.of(schema, items)
    (liking,) = found(model, items, users(schema, items, ("0", "2")))
    assert liking[:4] == ["3", "2", "1", "0"]
    assert liking[4:] == [str(i) for i in range(11, 3, -1)]


def test_what_most_items_have_tells_less_than_what_few_have(schema: Schema) -> None:
    rows = [{"kinds": ["shoes"], "brand": "b" if i in (0, 5) else f"only {i}"} for i in range(10)]
    items = table(schema, *rows)
    (liking,) = found(ColdStart.of(schema, items), items, users(schema, items, ("0",)))
    assert liking[:2] == ["5", "0"]


def test_an_item_rises_with_its_events_and_a_value_is_the_same_for_all(schema: Schema) -> None:
    items = table(schema, *({} for _ in range(5)))
    model = ColdStart.of(schema, items)
    (column,) = model.counters
    assert column.endswith(f"_{7 * 86_400}s"), "of two counts the one that follows the days"
    rows, nobody = torch.arange(1, 6), torch.zeros(5, dtype=torch.long)
    user = model.user_part(users(schema, items, ()))
    counts = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1e6]])
    click, spend, keep = model.score(user, nobody, rows, counts).T
    calm = model.score(user, nobody, rows, torch.zeros(5, 1))[:, 0]
    assert click.argsort(descending=True).tolist()[0] == 4
    assert (click[3:] > calm[3:]).all()
    assert (click[:3] == calm[:3]).all()
    assert (calm.diff() < 0).all()
    assert ((click > 0) & (click < 1)).all()
    assert (spend == 1).all()
    assert torch.equal(keep, calm), "no count of it is declared"


def test_without_counts_an_item_is_ranked_as_it_is_found(tmp_path: Path) -> None:
    schema = compiled.load(folder_in(tmp_path) / "schema.yaml")
    items = table(schema, *({"brand": f"b{i % 2}"} for i in range(6)))
    model = ColdStart.of(schema, items)
    assert model.counters == ()
    batch = users(schema, items, ("2",))
    asked = torch.zeros(6, dtype=torch.long), torch.arange(1, 7), torch.zeros(6, 0)
    order = model.score(model.user_part(batch), *asked)[:, 0].argsort(descending=True)
    assert [[items.ids[1 + i] for i in order.tolist()]] == found(model, items, batch)


def test_what_is_published_answers_as_the_model_and_is_not_called_trained(
    schema: Schema, tmp_path: Path
) -> None:
    items = table(
        schema, *({"brand": f"b{i % 3}", "place": [float(i), 1.0, -float(i)]} for i in range(9))
    )
    model = ColdStart.of(schema, items)
    for part in ("retrieval", "ranking"):
        cold_start.publish(tmp_path, part, part, schema, items, {})  # type: ignore[arg-type]
    retrieval = load_retrieval(artifact.current(tmp_path, "retrieval"), schema=schema)
    ranking = load_ranking(artifact.current(tmp_path, "ranking"), schema=schema)
    assert not retrieval.trained
    assert not ranking.trained
    batch = users(schema, items, (), ("1", "4"))
    assert torch.equal(retrieval.model.encode_users(batch), model.encode_users(batch))
    assert torch.equal(retrieval.item_vectors, model.item_vectors())
    asked = torch.arange(10) % 2, torch.arange(10), torch.arange(10.0)[:, None]
    there = ranking.model.score(ranking.model.user_part(batch), *asked)
    assert torch.equal(there, model.score(model.user_part(batch), *asked))
    with pytest.raises(artifact.ArtifactError, match="is a model of ranking, not of retrieval"):
        load_retrieval(artifact.current(tmp_path, "ranking"), schema=schema)
