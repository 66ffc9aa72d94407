"""Every model serves every domain: the least that can be declared, the films, and one with every
kind of field, count and derivation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import registry
from models.catalogue import ItemTable
from models.data.worlds.films.schema import SCHEMA
from models.layers.embedding_tables import Candidates, Features
from models.ranking import model as ranking_model
from models.schema.inputs import KINDS, Side
from models.serving import load_ranking, load_retrieval
from tests.artifacts import built, publish
from tests.unit.models.ranking.declared import (
    EVERYTHING,
    ITEMS,
    LEAST,
    LISTS,
    USERS,
    Domain,
    domain,
    random_names,
    ranking_of,
    read,
)
from tests.unit.models.ranking.worlds import NAMES, plain_logits, small, user

TEXTS = {"least": LEAST, "everything": EVERYTHING}
RETRIEVAL = registry.names("retrieval")
every_domain = pytest.mark.parametrize("of", ["least", "films", "everything"])
every_ranking = pytest.mark.parametrize("name", NAMES)
every_retrieval = pytest.mark.parametrize("name", RETRIEVAL)


@cache
def _domain(of: str) -> Domain:
    return domain(SCHEMA if of == "films" else read(TEXTS[of]))


def _retrieval(name: str, of: Domain) -> Any:
    sizes = {"field_width": 8, "hidden": (16,)} if name == "ssl_two_tower" else {}
    model = built(name, of.items, schema=of.schema, width=8, **sizes)
    if hasattr(model, "inputs"):
        model.inputs.learn(of.items, of.users)
    clicks = np.arange(ITEMS + 1)[::-1].copy()
    model.prepare_training(of.items, clicks)
    return model


def _same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same but for the order of sums, of numbers as large as the expected ones."""
    close = 1e-4 * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, atol=close, rtol=1e-3)


@every_domain
@every_ranking
def test_a_published_ranking_model_serves_the_scores_it_had(
    name: str, of: str, tmp_path: Path
) -> None:
    own = _domain(of)
    model, users = ranking_of(name, own), own.users.take(slice(3))
    arguments = own.rows(model)
    scores = model.score(model.user_part(users), *arguments)
    assert scores.shape == (9, len(own.schema.declaration.tasks))
    assert scores.isfinite().all()
    version = publish(tmp_path, name, model, own.items, own.schema)
    folder = tmp_path / name / "versions" / version
    loaded = load_ranking(folder, schema=own.schema).model
    assert loaded.counters == model.counters
    assert torch.equal(loaded.score(loaded.user_part(users), *arguments), scores)


@every_domain
@every_ranking
def test_the_split_of_user_and_candidate_is_the_network_over_all_fields(name: str, of: str) -> None:
    own = _domain(of)
    model, users = ranking_of(name, own), own.users.take(slice(3))
    arguments = own.rows(model)
    logits = model(users, *arguments)
    assert logits.std(0).max() > 1e-3
    _same(logits, plain_logits(model, users, arguments))


@every_domain
@every_ranking
def test_k_candidates_are_k_single_rows_whatever_is_declared(name: str, of: str) -> None:
    own = _domain(of)
    model, users = ranking_of(name, own), own.users.take(slice(3))
    row_user, items, counters = own.rows(model)
    together = model(users, row_user, items, counters)
    zero = torch.zeros(1, dtype=torch.long)
    for i in range(len(items)):
        one = slice(i, i + 1)
        alone = model(user(users, int(row_user[i])), zero, items[one], counters[one])
        _same(alone, together[one])


@every_domain
@every_retrieval
def test_a_published_retrieval_model_serves_the_vectors_it_had(
    name: str, of: str, tmp_path: Path
) -> None:
    own = _domain(of)
    model = _retrieval(name, own)
    vectors, of_items = model.encode_users(own.users), model.item_vectors()
    assert vectors.shape == (USERS, model.num_interests, 8)
    assert vectors.isfinite().all()
    assert of_items.isfinite().all()
    for i in range(3):
        _same(model.encode_users(user(own.users, i)), vectors[i : i + 1])
    version = publish(tmp_path, name, model, own.items, own.schema)
    loaded = load_retrieval(tmp_path / name / "versions" / version, schema=own.schema)
    assert torch.equal(loaded.item_vectors, of_items)
    assert torch.equal(loaded.model.encode_users(own.users), vectors)


@every_domain
@every_retrieval
def test_a_retrieval_model_can_learn_in_every_domain(name: str, of: str) -> None:
    own = _domain(of)
    model = _retrieval(name, own).train()
    targets = torch.arange(1, USERS + 1)
    loss = model.loss(own.users, targets, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@every_domain
@every_ranking
def test_a_ranking_model_can_learn_in_every_domain(name: str, of: str) -> None:
    own = _domain(of)
    model = small(name, own.items, schema=own.schema).train()
    model.inputs.learn(own.items, own.users)
    model.load_items(own.items)
    logits = model(own.users.take(slice(3)), *own.rows(model))
    labels = torch.randn(logits.shape) * 100
    loss = model.losses(logits, labels, torch.ones(logits.shape, dtype=torch.bool)).sum()
    loss.backward()
    assert loss.isfinite()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert not [n for n, grad in grads.items() if grad is not None and not grad.isfinite().all()]


@every_domain
@every_ranking
def test_items_embedded_once_are_scored_as_those_embedded_with_each_row(
    name: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _domain(of)
    model, users = ranking_of(name, own), own.users.take(slice(3))
    arguments, saved = own.rows(model), list(model.state_dict())
    user_part = model.user_part(users)
    before = model.score(user_part, *arguments)
    monkeypatch.setattr(ranking_model, "MOST_BYTES", 100)
    model.prepare_serving()  # that takes too much memory
    assert torch.equal(model.score(user_part, *arguments), before)
    monkeypatch.undo()
    model.prepare_serving()
    monkeypatch.setattr(model.inputs, "items", None)  # nobody asks for what they are any more
    assert torch.equal(model.score(user_part, *arguments), before)
    assert list(model.state_dict()) == saved


@pytest.mark.parametrize(
    "storage",
    ["hashed, rows: 16", "unified, rows: 16, lookups: 2", "unified, rows: 99, lookups: 3"],
)
@every_ranking
def test_every_declared_storage_is_served(name: str, storage: str, tmp_path: Path) -> None:
    own = domain(read(f"{EVERYTHING}tables: {{storage: {storage}}}\n"))
    model, users = ranking_of(name, own), own.users.take(slice(3))
    arguments = own.rows(model)
    scores = model.score(model.user_part(users), *arguments)
    version = publish(tmp_path, name, model, own.items, own.schema)
    loaded = load_ranking(tmp_path / name / "versions" / version, schema=own.schema).model
    assert loaded.network.tables.options.storage == storage.split(",")[0]
    assert torch.equal(loaded.score(loaded.user_part(users), *arguments), scores)


def test_everything_is_read() -> None:
    """The fields of the largest domain, by what they are: the other tests mean what they say."""
    own = _domain("everything")
    model = small("dnn", own.items, schema=own.schema)
    sources = model.reads.sources
    assert {s.how for s in sources} == {
        "key", "value", "count", "ratio", "since", "shares", "match", "history", "pool", "position"
    }  # fmt: skip
    assert {s.input.kind for s in sources} == {*KINDS, "history"}
    values = [s for s in sources if s.how == "value"]
    of_sides = {
        group: [(s.type, s.scale, s.vocabulary) for s in values if s.group == group]
        for group in ("given", "item")
    }
    assert sorted(of_sides["given"]) == sorted(of_sides["item"])
    assert len(of_sides["item"]) == 20
    of_requests = [s for s in values if s.group == "context"]
    assert len(of_requests) == 1 + sum(s.type not in LISTS for s in values if s.group == "item")
    assert len({s.type for s in values}) == 8
    assert model.of_value == (False, True, True, False)


@every_ranking
def test_every_input_reaches_the_logits(name: str) -> None:
    own = _domain("everything")
    model, users = ranking_of(name, own), own.users.take(slice(1, 4))
    row_user, items, counters = own.rows(model)
    inputs, schema = model.inputs.user(users), model.reads.schema
    sides: dict[Side, Features] = {
        "user": inputs.features,
        "item": model.inputs.items(items),
        "row": model.inputs.rows(inputs, row_user, items, counters),
    }

    def logits(of: dict[Side, Features]) -> torch.Tensor:
        found: torch.Tensor = model.network(of["user"], row_user, Candidates(of["item"], of["row"]))
        return found

    before, unmoved = logits(sides), []
    for side, features in sides.items():
        for i, one in enumerate(schema.of("id", side)):
            ids = features.ids.clone()
            ids[:, i] = (ids[:, i] + 1) % one.size
            if torch.equal(logits({**sides, side: features._replace(ids=ids)}), before):
                unmoved.append(one.name)
        for i, one in enumerate(schema.of("number", side)):
            numbers = features.numbers.clone()
            numbers[:, i] += 1
            if torch.equal(logits({**sides, side: features._replace(numbers=numbers)}), before):
                unmoved.append(one.name)
        for name, values in features.lists.items():
            one = next(each for each in schema.inputs if each.name == name)
            ids_of = one.kind in ("bag", "history")
            other = (values + 1) % one.size if ids_of else values + 1
            changed = features._replace(lists={**features.lists, name: other})
            if torch.equal(logits({**sides, side: changed}), before):
                unmoved.append(name)
    assert not unmoved


def test_of_the_unknown_item_nothing_is_known() -> None:
    """Its own fields are those of no value, not of the value 0 or false."""
    own = _domain("everything")
    for name in ("dnn", "ssl_two_tower"):
        model = built(name, own.items, schema=own.schema)
        model.inputs.learn(own.items, own.users)
        model.load_items(own.items)
        of_row_0 = model.inputs.items(torch.zeros(1, dtype=torch.long))
        assert not of_row_0.ids.any(), name
        assert not of_row_0.numbers.any(), name
        assert not any(values.any() for values in of_row_0.lists.values()), name


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("of", ["least", "everything"])
@pytest.mark.parametrize("name", [*NAMES, *RETRIEVAL])
def test_names_mean_nothing(name: str, of: str, seed: int) -> None:
    """Another name for every event, field and task: the same weights and the same answers."""
    ranks = name in NAMES
    states, answers = [], []
    for own in (_domain(of), domain(read(TEXTS[of], random_names(seed)))):
        model = (ranking_of if ranks else _retrieval)(name, own)
        states.append(model.state_dict())
        if ranks:
            answers.append(model.score(model.user_part(own.users), *own.rows(model)))
        else:
            answers.append(torch.cat([model.encode_users(own.users).flatten(),
                                      model.item_vectors().flatten()]))  # fmt: skip
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(*answers)


REQUESTS = """\
format: 1
events: {click: {id: 2, history: true}}
user: {given: {age: {type: number, scale: standardised}, sizes: {type: numbers, length: 2}}}
context:
  device: {type: category, values: [phone, desktop, car]}
  basket: {type: number}
  hour: {type: number, scale: cyclic, period: 24}
tasks: {click: {event: click}}
value: {formula: click}
surfaces: {home: {}, cart: {}}
derived: {page: {surface: true}}
"""


def _asking(users: Any, **columns: Any) -> Any:
    changed = replace(users, context=users.context.copy(), given=users.given.copy())
    for name, value in columns.items():
        of = changed.given if name in (changed.given.dtype.names or ()) else changed.context
        of[name] = value
    return changed


@pytest.mark.parametrize("name", [*NAMES, *RETRIEVAL])
def test_no_number_of_a_request_is_beyond_what_training_has_seen(name: str) -> None:
    own = domain(read(REQUESTS))
    model = (ranking_of if name in NAMES else _retrieval)(name, own)

    def answers(users: Any) -> torch.Tensor:
        if name not in NAMES:
            return model.encode_users(users)
        return model.score(model.user_part(users), *own.rows(model))

    found = {}
    for number in (-3e38, 1e6, 1e37, 3e38):
        absurd = _asking(own.users, basket=number, age=number, sizes=number, hour=abs(number))
        found[number] = answers(absurd)
        assert found[number].isfinite().all()
    hours = {n: _asking(own.users, basket=n, age=n, sizes=n) for n in (1e6, 3e38)}
    assert torch.equal(answers(hours[1e6]), answers(hours[3e38]))


@pytest.mark.parametrize("name", ["dnn", "ssl_two_tower"])
def test_what_never_varied_is_read_as_it_was_whatever_a_request_says(name: str) -> None:
    own = domain(read(REQUESTS))
    columns = {"device": 0, "hour": 7.0, "(surface)": 0, "age": 4.0}
    known = replace(own, users=_asking(own.users, **columns))
    model = (ranking_of if name in NAMES else _retrieval)(name, known)
    assert model.inputs.constant() == ["given.age", "context.device", "context.hour", "page"]

    def features(users: Any) -> Any:
        return model.inputs.user(users).features

    other = {"device": 2, "hour": 19.0, "(surface)": 1, "age": 40.0}
    before, after = features(known.users), features(_asking(known.users, **other))
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.numbers, after.numbers)
    assert all(torch.equal(before.lists[key], after.lists[key]) for key in before.lists)
    basket = features(_asking(known.users, basket=np.arange(USERS)))
    assert not torch.equal(before.numbers, basket.numbers)


@pytest.mark.parametrize("name", ["dnn", "ssl_two_tower"])
def test_a_vocabulary_may_have_learned_nothing(name: str) -> None:
    """No value of the training data was frequent enough, say."""
    own = _domain("everything")
    empty = {key: hashes[:0] for key, hashes in own.items.vocabularies.items()}
    table = own.items
    items = ItemTable(table.ids, table.keys, table.features, table.counts, empty)
    model = built(name, items, schema=own.schema)
    found = model.inputs.items(torch.arange(ITEMS + 1))
    assert not found.lists["item.i_learnt"].any()
    (place,) = (
        i
        for i, one in enumerate(model.reads.schema.of("id", "item"))
        if one.name == "item.i_learned"
    )
    assert not found.ids[:, place].any()
