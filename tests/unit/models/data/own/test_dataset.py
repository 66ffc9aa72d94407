"""Imported tables as a data set: visits, labels, the catalogue; any domain trains and is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models import artifact, serving
from models.data.errors import DataError
from models.data.events import VISIT
from models.data.own import dataset as own_dataset
from models.schema import read
from models.schema.compiled import compiled
from models.schema.layout import SURFACE
from models.training import ranking, replay
from models.training.loop import LoopConfig
from models.training.pipeline import train_all
from tests.unit.models.data.own.shop import DAY, MINUTE, SHOP, START, tables

PLACES = """\
format: 1
events: {impression: {id: 1, role: impression}, click: {id: 2, history: true}}
context:
  device: {type: category, values: [phone, desktop], default: desktop}
  limit: {type: number}
derived: {page: {surface: true}, place: {position: 10}}
tasks: {click: {event: click}}
value: {formula: click}
surfaces: {home: {}, cart.side-bar: {}}
"""
WITH_PLACES, WITHOUT_PLACES = (
    compiled(read.parse(text.encode(), "schema.yaml"))
    for text in (PLACES, PLACES.replace(", place: {position: 10}", ""))
)


def _events(*rows: tuple[str, str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [(*row, None) for row in rows],
        {"user_id": str, "item_id": str, "event": str, "time_ms": int, "value": float},
        orient="row",
    )


def test_rows_of_a_user_and_an_item_within_a_day_are_one_visit() -> None:
    table = own_dataset.canonical(
        SHOP,
        _events(
            ("u", "a", "impression", START),
            ("u", "b", "impression", START + 1),
            ("u", "a", "click", START + MINUTE),
            ("v", "a", "click", START + MINUTE),
            ("u", "a", "purchase", START + own_dataset.VISIT_MS + MINUTE),
            ("u", "a", "click", START + 2 * own_dataset.VISIT_MS + MINUTE + 1),
        ),
    )
    assert table[VISIT].to_list() == [0, 1, 0, 3, 0, 5]
    assert table["click"].to_list() == [False, False, True, True, False, True]


def test_an_event_that_is_not_declared_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'wink' is not declared"):
        own_dataset.canonical(SHOP, _events(("u", "a", "wink", START)))


def test_a_visit_is_one_example_with_what_happened_in_it_and_the_features_before_it() -> None:
    data = tables()
    examples = replay.replay(data)
    assert len(examples) == data.events[VISIT].n_unique()
    assert examples.slate.shape[1] == 1, "impressions without a choice are the negatives"
    names = [task.name for task in SHOP.declaration.tasks]
    click, buy, spend = (names.index(name) for name in ("click", "buy", "spend"))
    labels, known = examples.labels[:, 0], examples.known[:, 0]
    assert 0 < labels[:, click].mean() < 1
    met = known[:, click]  # of items that nobody had met a click is not learned
    assert (known[met, buy] == (labels[met, click] == 1)).all()
    assert (known[:, spend] == (known[:, buy] & (labels[:, buy] == 1))).all()
    bought = known[:, spend]
    pieces = labels[bought, spend] / data.items.features["price"][examples.item[bought]]
    assert set(pieces) == {1.0, 2.0}, "what is bought twice in a visit is paid twice"
    assert (examples.chosen[met] == (labels[met, click] == 1)).all()
    known_until = examples.users.profile["last_event_ms"]
    assert (known_until <= examples.time_ms).all(), "no example knows what comes after it"


VALUED = """\
format: 1
events:
  seen: {id: 1, role: impression}
  rate: {id: 2, history: true, value: {unit: points, min: -5, max: 5, repeats: replace}}
  buy: {id: 3, history: true, value: {unit: EUR}}
tasks:
  rated: {event: rate}
  points: {event: rate, target: value, given: rated}
  bought: {event: buy}
  spend: {event: buy, target: value, given: bought}
value: {formula: spend}
"""


def test_values_of_a_visit_add_up_or_replace_each_other_and_what_has_none_is_unknown() -> None:
    schema = compiled(read.parse(VALUED.encode(), "schema.yaml"))
    visits: dict[str, list[tuple[str, float | None]]] = {
        "below": [("seen", None), ("rate", -3.0)],
        "twice": [("buy", 40.0), ("seen", None), ("buy", 10.0)],
        "again": [("rate", 4.0), ("rate", -1.0)],
        "part": [("buy", 5.0), ("buy", None)],
        "none": [("seen", None), ("buy", None)],
        "only": [("seen", None)],
    }
    rows = [
        ("u", item, event, START + i * MINUTE, value)
        for item, happened in visits.items()
        for i, (event, value) in enumerate(happened)
    ]
    rows += [("later", f"i{day}", "seen", START + day * DAY, None) for day in range(2, 30)]
    events = pl.DataFrame(rows, ["user_id", "item_id", "event", "time_ms", "value"], orient="row")
    items = pl.DataFrame({"item_id": events["item_id"].unique()})
    data = own_dataset.build("valued", schema, events, items)
    examples = replay.replay(data)
    ids = [data.items.ids[row] for row in examples.item]
    for item, points, spend in (
        ("below", -3, None),
        ("twice", None, 50),
        ("again", -1, None),
        ("part", None, 5),
        ("none", None, None),
        ("only", None, None),
    ):
        at = ids.index(item)
        for task, expected in ((1, points), (3, spend)):
            assert examples.known[at, 0, task] == (expected is not None), (item, task)
            assert examples.labels[at, 0, task] == (expected or 0), (item, task)
        bought = any(event == "buy" for event, _ in visits[item])
        assert examples.labels[at, 0, 2] == (bought and examples.known[at, 0, 2])


def test_what_happens_after_the_split_is_no_label_of_the_training() -> None:
    data = tables()
    cut = data.train_until_ms
    inside = pl.col("event_time_ms") < cut
    late = data.events.filter(~inside)[VISIT].unique()
    early = data.events.filter(inside)[VISIT].unique()
    across = set(late.to_list()) & set(early.to_list())
    examples, (first, happened) = replay.replay(data), replay._visits(data)
    visit = data.events[VISIT].to_numpy()[first]
    for at in np.flatnonzero(np.isin(visit, list(across))):
        own = data.events.filter((pl.col(VISIT) == visit[at]) & inside)
        assert happened["click"][int(at)] == own["click"].any()
    assert len(examples) == len(first)


def test_the_catalogue_is_what_was_met_before_the_split_with_the_fields_as_declared() -> None:
    data = tables()
    met = data.train["item_id"].unique().to_list()
    assert sorted(data.items.ids[1:]) == sorted(met)
    clicks = data.items.counts[1:, 0]
    assert (np.diff(clicks.astype(int)) <= 0).all()
    row = data.items.ids.index("i3")
    stored = data.items.features[row]
    assert stored["price"] == 13.0
    assert stored["countries"].tolist()[:3] == [1, 2, 0], "FR is not declared"
    assert data.items.ids_of("brand")[row, 0] > 0
    assert data.given is not None
    assert data.given[1]["country"].tolist() == [1] * 20


def test_a_field_of_items_may_have_any_name_that_can_be_declared() -> None:
    schema = compiled(
        read.parse(f"{PLACES}item: {{fields: {{met: {{type: number}}}}}}".encode(), "")
    )
    events = _events(*(("u", "a", "click", START + i) for i in range(40)))
    items = pl.DataFrame({"item_id": ["a"], "met": [7.0]})
    assert own_dataset.build("", schema, events, items).items.features["met"][1] == 7.0


def test_a_domain_that_is_no_film_is_trained_published_and_loaded(tmp_path: Path) -> None:
    data, model = tables(users=120), "masknet"
    loop = LoopConfig(epochs=3, batch_size=128, learning_rate=3e-3)
    report = train_all(
        tmp_path, dataset=data, ranking_models=(model,), ranking_loop=loop, retrieval_loop=loop,
        settings={"ssl_two_tower": {"field_width": 8, "width": 8, "hidden": (16,)}},
    )  # fmt: skip
    assert report.quality[model]["click auc"] > 0.7, "the category tells who clicks what"
    assert -1 <= report.quality[model]["spend correlation"] <= 1
    ranker = serving.load_ranking(artifact.current(tmp_path, model), schema=SHOP).model
    found = serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"), schema=SHOP)
    examples = replay.replay(data)
    users = examples.user_batch(np.arange(3))
    rows = torch.arange(len(data.items) + 1)
    counters = torch.zeros(len(rows), len(ranker.counters))
    scores = ranker.score(ranker.user_part(users), torch.zeros_like(rows), rows, counters)
    assert scores.isfinite().all()
    assert scores.shape == (len(rows), 4)
    assert found.model.encode_users(users).isfinite().all()


def test_an_example_has_the_context_surface_and_place_of_its_first_row() -> None:
    events = _events(
        ("u", "a", "impression", START),
        ("u", "b", "impression", START + 1),
        ("u", "a", "click", START + MINUTE),
        ("v", "a", "click", START + 2 * MINUTE),
        ("v", "b", "impression", START + 3 * MINUTE),
        ("w", "b", "impression", START + 4 * MINUTE),
    ).with_columns(
        surface=pl.Series(["home", "cart.side-bar", None, None, "home", "cellar"]),
        position=pl.Series([3, 7, 1, None, 2, 99], dtype=pl.Int32),
        device=pl.Series(["phone", None, "desktop", None, "phone", None]),
        limit=pl.Series([5.0, None, 1.0, None, None, 2.0]),
    )
    data = own_dataset.build("shop", WITH_PLACES, events, pl.DataFrame({"item_id": ["a", "b"]}))
    examples = replay.replay(data)
    context = examples.users.context
    assert context[SURFACE].tolist() == [1, 2, 0, 1, 0]
    assert context["device"].tolist() == [1, 2, 2, 1, 2], "desktop is the declared default"
    assert context["limit"].tolist() == [5.0, 0.0, 0.0, 0.0, 2.0]
    assert examples.positions.tolist() == [3, 7, 0, 2, 99]


def test_places_are_no_input_where_negatives_are_drawn() -> None:
    """They stood in no list: what has a place would be what was chosen."""
    rows = [(f"u{i % 3}", f"i{i % 7}", "click", START + i * MINUTE) for i in range(60)]
    events = _events(*rows).with_columns(position=pl.lit(4, pl.Int32))
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(7)]})
    examples = replay.replay(own_dataset.build("shop", WITH_PLACES, events, items))
    assert examples.slate.shape[1] > 1
    assert not examples.positions.any()


def test_what_the_place_has_done_is_not_put_down_to_the_item(tmp_path: Path) -> None:
    """Clicks depend on the place alone, and even items stand first nine times out of ten."""
    rng = np.random.default_rng(0)
    rows, places = [], []
    for i in range(12_000):
        item = int(rng.integers(20))
        first = (item % 2 == 0) == (rng.random() < 0.9)
        at = START + i * MINUTE
        rows.append((f"u{i % 400}", f"i{item}", "impression", at))
        places.append(1 if first else 9)
        if rng.random() < (0.6 if first else 0.1):
            rows.append((f"u{i % 400}", f"i{item}", "click", at + 1))
            places.append(places[-1])
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(20)]})
    favour = []
    for schema in (WITHOUT_PLACES, WITH_PLACES):
        events = _events(*rows).with_columns(position=pl.Series(places, dtype=pl.Int32))
        data = own_dataset.build("shop", schema, events, items)
        examples = replay.replay(data)
        model, _ = ranking.train(data, examples, LoopConfig(3, 256, 3e-3, patience=3), name="dnn")
        users = examples.user_batch(np.arange(1))
        of_items = torch.arange(1, len(data.items) + 1)
        counters = torch.zeros(len(of_items), len(model.counters))
        nobody = torch.zeros_like(of_items)
        scores = model.score(model.user_part(users), nobody, of_items, counters)[:, 0].numpy()
        even = np.array([int(name[1:]) % 2 == 0 for name in data.items.ids[1:]])
        favour.append(scores[even].mean() - scores[~even].mean())
    assert favour[0] > 0.25
    assert abs(favour[1]) < 0.1
