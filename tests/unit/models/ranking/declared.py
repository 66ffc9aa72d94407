"""Domains to serve models of: a declaration, and random data that fit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.schema.compiled import Schema, compiled
from models.schema.declaration import Field
from models.schema.layout import SURFACE
from models.schema.read import parse
from models.schema.reader.words import RESERVED
from tests.unit.models.ranking.worlds import small, spread
from tests.unit.models.users import NOW_MS

ITEMS, USERS = 40, 12
WORDS = tuple(range(1000, 1400, 7))  # hashes of learned and hashed values that there are

LEAST = """\
format: 1
events: {@click: {id: 1}}
tasks: {@clicked: {event: @click}}
value: {formula: "@clicked"}
"""

# Every type with every vocabulary and scale that it has; `$` becomes the name of the side.
FIELDS = """\
{$valued: {type: category, values: [red, green, blue], default: green},
    $learned: {type: category, learned: 20},
    $hashed: {type: category, hashed: 7},
    $values: {type: bag, slots: 3, values: [a, b, c, d]},
    $learnt: {type: bag, slots: 3, learned: 9},
    $hashes: {type: bag, slots: 3, hashed: 5},
    $linear: {type: number, scale: linear},
    $log: {type: number, scale: log},
    $standard: {type: number, scale: standardised},
    $quantile: {type: number, scale: quantiles, buckets: 4},
    $cycle: {type: number, scale: cyclic, period: 24},
    $flag: {type: flag},
    $age: {type: time},
    $log_age: {type: time, scale: log},
    $standard_age: {type: time, scale: standardised},
    $quantile_age: {type: time, scale: quantiles, buckets: 4},
    $half: {type: vector, length: 3, dtype: float16},
    $vector: {type: vector, length: 2},
    $text: {type: text, slots: 4, buckets: 11},
    $numbers: {type: numbers, length: 2}}"""

LISTS = ("bag", "vector", "numbers")  # which no request sends
FIELDS_OF_A_REQUEST = "{" + ",".join(
    each for each in FIELDS.replace("$", "@c_").strip("{}").split(",\n")
    if not any(f"type: {kind}" in each for kind in LISTS)
) + "}"  # fmt: skip

EVERYTHING = f"""\
format: 1
events:
  @seen: {{id: 1, role: impression}}
  @click: {{id: 4, history: true}}
  @buy: {{id: 2, history: true, upgrades: [@click], value: {{unit: EUR, max: 1000}}}}
  @rate: {{id: 9, value: {{unit: stars, min: -5, max: 5}}}}
user:
  given: {FIELDS.replace("$", "@u_")}
  counts:
    @seen: {{}}
    @click: {{half_lives: [none, 30d]}}
    @buy: {{half_lives: [none, 30d]}}
  sums: {{@buy: {{half_lives: [7d]}}, @rate: {{}}}}
  affinities:
    @taste: {{of: @i_valued, by: [@click], half_life: 30d}}
    @styles: {{of: @i_values, by: [@buy, @click]}}
item:
  fields: {FIELDS.replace("$", "@i_")}
  counts: {{@click: {{half_lives: [7d, none]}}, @buy: {{half_lives: [7d, none]}}}}
  sums: {{@buy: {{half_lives: [7d]}}}}
context: {FIELDS_OF_A_REQUEST}
derived:
  @buys: {{ratio: [@buy, @click]}}
  @buys_of_late: {{ratio: [@buy, @click], half_life: 30d}}
  @sells: {{ratio: [@buy, @click], side: item}}
  @sells_of_late: {{ratio: [@buy, @click], side: item, half_life: 7d}}
  @idle: {{since: any}}
  @bought: {{since: @buy}}
  @tasteful: {{match: @taste}}
  @stylish: {{match: @styles}}
  @chosen: {{pool: [any]}}
  @owned: {{pool: [@buy]}}
  @page: {{surface: true}}
  @place: {{position: 5}}
history: {{length: 30, models_read: 10}}
tasks:
  @clicks: {{event: @click}}
  @spends: {{event: @buy, target: value, given: @clicks}}
  @rates: {{event: @rate, target: value}}
  @buying: {{event: @buy, given: @clicks}}
value: {{formula: "@clicks * @spends + @buying"}}
surfaces: {{@home: {{}}, @basket: {{}}}}
"""


def read(text: str, rename: Callable[[str], str] = str) -> Schema:
    """The schema of a text, in which @ is before every name."""
    return compiled(parse(re.sub(r"@(\w+)", lambda m: rename(m[1]), text).encode(), "schema.yaml"))


def random_names(seed: int) -> Callable[[str], str]:
    """A random word for every name, always the same one."""
    rng, words = np.random.default_rng(seed), dict[str, str]()

    def word(name: str) -> str:
        while name not in words:
            letters = rng.choice(list("abcdefgXYZ"), rng.integers(3, 12))
            made = "".join(letters)
            if made not in (*words.values(), *RESERVED):
                words[name] = made
        return words[name]

    return word


@dataclass(frozen=True)
class Domain:
    """A schema with random items and users of it."""

    schema: Schema
    items: ItemTable
    users: UserBatch

    def rows(self, model: object, count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
        """Users 0..2, item rows (the first unknown) and their counters."""
        generator = torch.Generator().manual_seed(3)
        items = torch.randint(1, ITEMS + 1, (count,), generator=generator)
        items[0] = 0
        columns = len(model.counters)  # type: ignore[attr-defined]
        counters = torch.rand(count, columns, generator=generator) * 20
        counters[0] = 0
        return torch.arange(count) * 3 // count, items, counters


def domain(schema: Schema, seed: int = 0) -> Domain:
    """Random data by the places of fields alone: those of two schemas that differ in their names
    are the same. Of user 0 and item 1 nothing is known."""
    rng = np.random.default_rng(seed)
    features = np.zeros(ITEMS, schema.layout.item.dtype)
    _fill(features, schema.declaration.item_fields, rng)
    learned = {
        field.name: np.array(rng.permutation(WORDS)[: field.vocabulary.size], np.uint64)
        for field in schema.declaration.item_fields
        if field.vocabulary is not None and field.vocabulary.source == "learned"
    }
    tasks = len(schema.declaration.tasks)
    counts = np.arange(ITEMS, 0, -1)[:, None].repeat(tasks, 1)
    items = ItemTable.build([f"i{i}" for i in range(ITEMS)], features, counts, learned)
    return Domain(schema, items, _users(schema, rng))


def _users(schema: Schema, rng: np.random.Generator) -> UserBatch:
    read, kept = schema.declaration.history.models_read, _kept(schema)
    history = np.zeros((USERS, read), np.int64)
    if kept:
        history = rng.integers(1, ITEMS + 1, (USERS, read))
        history[np.arange(read) >= rng.integers(1, read + 1, (USERS, 1))] = 0
        history[0] = 0
    events = rng.choice(kept or [0], history.shape).astype(np.uint8) * (history > 0)
    profile = np.zeros(USERS, schema.layout.profile.dtype)
    for name in profile.dtype.names or ():
        values = profile[name]
        if name.startswith("last_"):
            values[1:] = NOW_MS - rng.integers(0, 10**9, USERS - 1)
        else:
            values[1:] = rng.integers(0, 30, values[1:].shape)
    given = np.zeros(USERS, schema.layout.given.dtype)
    _fill(given, schema.declaration.user_given, rng)
    context = np.zeros(USERS, schema.layout.context.dtype)
    _fill(context, schema.declaration.context, rng)
    if SURFACE in (context.dtype.names or ()):
        context[SURFACE] = rng.integers(0, len(schema.declaration.surfaces) + 1, USERS)
    return UserBatch(history, events, profile, given, context, np.full(USERS, NOW_MS))


def _kept(schema: Schema) -> list[int]:
    return [event.id for event in schema.declaration.events if event.history]


def _fill(records: np.ndarray, fields: Iterable[Field], rng: np.random.Generator) -> None:
    """Values of each field, a third of them missing, those of record 0 all."""
    for field in fields:
        column = records[field.name]
        missing = rng.random(len(records)) < 1 / 3
        missing[0] = True
        values = _values(field, column.shape, rng).astype(column.dtype)
        values[missing] = 0
        if field.type in ("number", "numbers", "vector"):
            values[1::5] = np.nan if field.type == "number" else 0
        records[field.name] = values


def _values(field: Field, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    vocabulary = field.vocabulary
    if vocabulary is not None and vocabulary.source == "values":
        return rng.integers(1, vocabulary.size + 1, shape)
    if vocabulary is not None:
        return rng.choice(WORDS, shape)
    if field.type == "text":
        return rng.integers(1, field.buckets + 1, shape)
    if field.type == "flag":
        return rng.integers(0, 2, shape)
    if field.type == "time":
        return NOW_MS - rng.integers(0, 10_000, shape)
    return rng.normal(size=shape)


def ranking_of(name: str, of: Domain) -> Any:
    """A small ranking model of a domain, its weights spread, ready to score."""
    torch.manual_seed(0)
    model = spread(small(name, of.items, schema=of.schema))
    model.inputs.learn(of.items, of.users)
    model.load_items(of.items)
    return model
