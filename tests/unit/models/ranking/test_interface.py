"""What every ranking model owes the service and the trainer, whichever it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.catalogue import ItemTable
from models.data.events import Dataset
from models.data.worlds.films.schema import SCHEMA
from models.schema.inputs import reads_of
from tests.unit.models.ranking.worlds import NAMES, plain_logits, rows, small, spread, user
from tests.unit.models.users import nobody, some_users

SWITCHED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "infnet/own table": ("infnet", {"own_history": True, "pool_histories": False}),
    "infnet/literal": (
        "infnet", {"proxy_source": "stale", "residual": False, "heads": 2, "out_proj": True},
    ),
    "mc_mlcc/switches": (
        "mc_mlcc",
        {"channels": 2, "per_channel_lc": True, "se": False, "raw_concat": False,
         "dyn_activation": "tanh"},
    ),
    "masknet/serial": ("masknet", {"variant": "serial"}),
    "dnn/dropout": ("dnn", {"dropout": 0.1}),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", SWITCHED)


def _fresh(name: str, data: Dataset) -> Any:
    torch.manual_seed(0)
    model, settings = SWITCHED[name]
    return small(model, data.items, **settings)


def _model(name: str, data: Dataset) -> Any:
    return spread(_fresh(name, data))


@every_model
def test_a_batch_of_requests_equals_single_rows(name: str, data: Dataset) -> None:
    n, model = len(data.items), _model(name, data)
    batch, (row_user, items, counters) = some_users(3, n), rows(n, 9)
    scores = model.score(model.user_part(batch), row_user, items, counters)
    logits = model(batch, row_user, items, counters)
    assert model.tasks == ("click", "like")
    assert scores.shape == (9, 2)
    assert scores.dtype == torch.float32
    assert (scores.std(0) > 1e-4).all()
    torch.testing.assert_close(torch.sigmoid(logits), scores, atol=1e-5, rtol=1e-4)
    zero = torch.zeros(1, dtype=torch.long)
    for i in range(9):
        alone = model.user_part(user(batch, int(row_user[i])))
        one = slice(i, i + 1)
        score = model.score(alone, zero, items[one], counters[one])
        torch.testing.assert_close(score, scores[one], atol=1e-5, rtol=1e-4)


@every_model
def test_the_split_is_the_network_over_all_fields(name: str, data: Dataset) -> None:
    n, model = len(data.items), _model(name, data)
    batch, arguments = some_users(3, n), rows(n, 9)
    expected = plain_logits(model, batch, arguments)
    torch.testing.assert_close(model(batch, *arguments), expected, atol=1e-3, rtol=1e-3)


@every_model
def test_what_stands_in_padded_places_of_a_history_has_no_effect(name: str, data: Dataset) -> None:
    n, model = len(data.items), _model(name, data)
    batch, arguments = some_users(3, n), rows(n)
    before = model.score(model.user_part(batch), *arguments)
    other = replace(batch, events=batch.events + 3 * (batch.history == 0).astype("uint8"))
    after = model.score(model.user_part(other), *arguments)
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-5)
    wider = replace(
        batch,
        history=torch.nn.functional.pad(torch.from_numpy(batch.history), (0, 7), value=5).numpy(),
        events=torch.nn.functional.pad(torch.from_numpy(batch.events), (0, 7), value=3).numpy(),
    )
    longer = model.score(model.user_part(wider), *arguments)
    assert torch.equal(longer, before), "only the newest entries are read"


@every_model
def test_nobody_and_an_unknown_item_get_a_probability(name: str, data: Dataset) -> None:
    model, zero = _model(name, data), torch.zeros(1, dtype=torch.long)
    scores = model.score(model.user_part(nobody()), zero, zero, torch.zeros(1, 4))
    assert ((scores > 0) & (scores < 1)).all()


@every_model
def test_counters_at_the_request_are_those_that_are_given(name: str, data: Dataset) -> None:
    """In the order of `counters`; an item's counts of training are not among them."""
    n, model = len(data.items), _model(name, data)
    assert model.counters == ("count_2_7776000s", "count_2", "count_3_7776000s", "count_3")
    batch, (row_user, items, counters) = some_users(3, n), rows(n)
    before = model(batch, row_user, items, counters)
    for column in range(4):
        other = counters.clone()
        other[:, column] += 40
        assert not torch.equal(model(batch, row_user, items, other), before), column
    table = data.items
    counted = ItemTable(table.ids, table.keys, table.features, table.counts + 9, table.vocabularies)
    model.load_items(counted)
    assert torch.equal(model(batch, row_user, items, counters), before)


@every_model
def test_every_parameter_is_reached_and_the_unknown_row_is_not(name: str, data: Dataset) -> None:
    n, model = len(data.items), _fresh(name, data)
    batch, (row_user, items, counters) = some_users(3, n), rows(n, 30)
    if name.startswith(("mlcc", "mc_mlcc")):
        spread(model, 0.1)  # products of what they start with are too small to be told from zero
    logits = model(batch, row_user, items, counters)
    known = torch.ones(30, 2, dtype=torch.bool)
    model.losses(logits, torch.rand(30, 2), known).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key
        if key.endswith("table.weight") and "field_table" not in key:
            assert not parameter.grad[0].any(), key


@every_model
def test_a_model_can_learn_what_it_is_shown(name: str, data: Dataset) -> None:
    """Which of eight items is liked, the same by all users, is within the reach of every model."""
    model = _fresh(name, data)
    batch, items = some_users(3, len(data.items)), torch.arange(1, 9).repeat(3)
    row_user, counters = torch.arange(3).repeat_interleave(8), torch.zeros(24, 4)
    labels = (items % 2 == 0).float()[:, None].expand(24, 2)
    known = torch.ones(24, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(80):
        loss = model.losses(model(batch, row_user, items, counters), labels, known).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_model_refuses_a_table_of_another_size_or_without_its_fields(data: Dataset) -> None:
    model, table = small("dnn", data.items), data.items
    fewer = ItemTable.build(table.ids[1:4], table.features[1:4])
    with pytest.raises(ValueError, match="table of 3"):
        model.load_items(fewer)
    bare = table.features[["genres", "tags"]]
    with pytest.raises(ValueError, match="no field year"):
        model.load_items(ItemTable(table.ids, table.keys, bare, table.counts, table.vocabularies))


def test_a_ranking_model_reads_what_is_declared_for_ranking(data: Dataset) -> None:
    found = reads_of(SCHEMA.declaration, SCHEMA.layout, "ranking", data.items.sizes)
    assert small("dnn", data.items).reads == found
    names = [source.input.name for source in found.sources]
    assert "item.tags" not in names  # of retrieval alone
    assert "user.count_1" not in names  # of no model
