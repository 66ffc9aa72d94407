"""What is unknown does not win: items, users and values that a training has not seen.

The unknown row is tested as a competitor of the known ones, in every model that can be published.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import registry
from models.data.events import Dataset
from models.data.worlds.films.schema import (
    CLICK,
    CLICKS,
    COUNTS,
    HISTORY,
    HISTORY_LENGTH,
    ITEM_COUNTS,
    LIKE,
    MODEL_HISTORY,
    PROFILE,
    SCHEMA,
)
from models.inputs import user_batch
from models.layers import shared_batch
from models.layers.shared_batch import Share
from models.training import ranking, replay
from models.training.loop import LoopConfig
from models.training.prepared import tables
from models.training.replay import Examples
from tests.unit.models import synthetic
from tests.unit.models.training.prepared.test_train import SMALL, small_table
from tests.unit.models.training.test_pipeline import tiny
from tests.unit.models.users import nobody

LOOP = LoopConfig(epochs=2, batch_size=64, learning_rate=1e-2)
_, CLICKS_EVER, _, _ = ITEM_COUNTS


@pytest.fixture(scope="module")
def data() -> Dataset:
    return synthetic.dataset(users=60)


@pytest.fixture(scope="module")
def examples(data: Dataset) -> Examples:
    return replay.replay(data)


def _training_rows(data: Dataset, examples: Examples) -> ranking.Rows:
    """Every training example twenty times, some rows as of unknown items."""
    index = np.flatnonzero(examples.time_ms < data.train_until_ms)
    rates = ranking.unknown_rates(examples.item[index], len(data.items))
    index = np.tile(index, 20)
    generator = torch.Generator().manual_seed(0)
    return ranking.unknown_at_random(ranking.rows_of(examples, index), rates, len(index), generator)


@pytest.mark.parametrize("name", registry.names("ranking"))
def test_an_unknown_item_is_not_above_the_best_of_what_is_known(
    name: str, data: Dataset, examples: Examples
) -> None:
    """For somebody and for a user of whom nothing is known, the counters of all items being 0."""
    config = ranking.model_config(data.schema, data.items, name, **tiny(name))
    rows = torch.arange(len(data.items) + 1)
    somebody = np.flatnonzero(examples.users.profile[CLICKS] > 9)[:1]
    above = []  # of the known items, the share that is above the unknown one
    for seed in (0, 1):
        model, _ = ranking.train(data, examples, replace(LOOP, seed=seed), config, name=name)
        counters = torch.zeros(len(rows), len(model.counters))
        for user in (nobody(), examples.user_batch(somebody)):
            scores = model.score(model.user_part(user), torch.zeros_like(rows), rows, counters)
            click = scores[:, 0]
            above.append(float((click[1:] >= click[0]).float().mean()))
    assert min(above) > 0
    assert np.mean(above) > 0.15


def test_no_count_of_an_items_events_is_seen_with_one_label_only(
    data: Dataset, examples: Examples
) -> None:
    """The first event of an item is a click without a count, and negatives always have one."""
    rows = _training_rows(data, examples)
    known, click = rows.known[:, 0], rows.labels[:, 0] > 0
    few = rows.counters[:, examples.columns.index(CLICKS_EVER)]
    for count in (0, 1, 2, 3):
        assert 0 < click[known & (few == count)].float().mean() < 0.8
    assert ((rows.items == 0) == (few == 0))[known].all()


def test_an_unknown_item_looks_in_training_as_it_does_to_the_service(
    data: Dataset, examples: Examples
) -> None:
    rows = _training_rows(data, examples)
    unknown = rows.items == 0
    assert not rows.counters[unknown].any()
    for task in (0, 1):
        labels = rows.labels[unknown & rows.known[:, task], task]
        assert labels.unique().tolist() == [0.0, 1.0]


def test_each_item_stands_for_the_unknown_one_as_often(data: Dataset, examples: Examples) -> None:
    rates = ranking.unknown_rates(examples.item, len(data.items))
    events = torch.from_numpy(np.bincount(examples.item, minlength=len(data.items) + 1))
    assert torch.allclose((rates * events)[1:], torch.tensor(ranking.UNKNOWN))
    assert rates[0] == 0


def test_a_worker_shows_the_same_rows_of_its_share_as_unknown(
    data: Dataset, examples: Examples
) -> None:
    index, share = np.arange(200, 300), Share(30, 20, 100)
    rates = torch.full((len(data.items) + 1,), 0.5)

    def unknown(index: np.ndarray) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        rows = ranking.rows_of(examples, index)
        return ranking.unknown_at_random(rows, rates, len(index), generator).items

    whole = unknown(index).reshape(len(index), -1)
    with shared_batch.within(share):
        assert torch.equal(unknown(share.of(index)).reshape(share.rows, -1), share.of(whole))


def test_a_user_of_whom_nothing_is_known_is_learned_from_both_labels(examples: Examples) -> None:
    counts = np.stack([examples.users.profile[column] for column in COUNTS], axis=1)
    new = np.flatnonzero(~examples.users.history.any(1) & ~counts.any(1))
    rows = ranking.rows_of(examples, new)
    for task in (0, 1):
        assert rows.labels[rows.known[:, task], task].unique().tolist() == [0.0, 1.0]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=HISTORY_LENGTH))
def test_events_of_unknown_items_leave_no_trace_in_what_models_read(
    events: list[tuple[int, bool]],
) -> None:
    """Whatever model: an item of row 0 stands in no history. Numbers above 5 are unknown items."""
    items = synthetic.dataset(users=8).items

    def batch(chosen: list[tuple[int, bool]]) -> dict[str, np.ndarray]:
        history = HISTORY.defaults().reshape(1)
        history["length"] = len(chosen)
        for at, (number, liked) in enumerate(chosen):
            known = 0 < number <= 5
            history["item_keys"][0, at] = items.keys[number] if known else 2**40 + number
            history["event_ids"][0, at] = LIKE if liked else CLICK
        profile, now_ms = PROFILE.defaults().reshape(1), np.array([1])
        given, context = (
            np.zeros(1, g.dtype) for g in (SCHEMA.layout.given, SCHEMA.layout.context)
        )
        read = user_batch(profile, history, given, context, now_ms, items, MODEL_HISTORY)
        return vars(read)

    found, expected = batch(events), batch([event for event in events if 0 < event[0] <= 5])
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("name", registry.names("ranking"))
def test_a_value_that_a_table_has_not_trained_is_within_those_that_it_has(name: str) -> None:
    """An item outside the vocabulary, in a table whose clicks depend on the item alone."""
    table = small_table()
    pairs = SMALL.get("mc_mlcc" if name == "mlcc" else name, ["width=4"])
    (settings,) = registry.settings(pairs, (registry.kind_of(name).config,), ())
    spec = tables.RankerSpec(name, settings, loop=LoopConfig(10, 32, 0.02, patience=10))
    data = tables.TableTensors(table)
    model = tables.train(data, spec, 0)[0]
    batch = data.batch(np.flatnonzero(table.split == 2)[:50])
    clicks = []
    for item in range(9):
        rows = batch.rows._replace(ids=torch.full_like(batch.rows.ids, item))
        clicks.append(float(model.score(batch._replace(rows=rows))[:, 0].mean()))
    unknown, *known = clicks
    assert max(known) - min(known) > 0.3, "nothing was learned"
    assert min(known) < unknown < max(known) - 0.1
