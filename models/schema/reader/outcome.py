"""What lists are made for: tasks, the value formula, surfaces; and how tables are stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, get_args

import numpy as np

from models.schema.declaration import Event, History, Storage, Surface, Tables, Task, Weight
from models.schema.formula import MOST, Formula, FormulaError
from models.schema.reader.words import EMPTY, Named, Section, Word
from models.yaml_reader.places import suggestion
from models.yaml_reader.values import Number, Text, choice, whole


class HistoryBlock(Section):
    length: Annotated[int, whole(1, 1_000)] = 200
    """Events kept per user."""
    models_read: Annotated[int, whole(1, 200)] = 50
    """The newest of them, which models read; all if fewer are kept."""

    def check(self) -> None:
        if not self.has("models_read"):
            self.models_read = min(self.models_read, self.length)
        elif self.models_read > self.length and self.clean:
            self.wrong("models_read", f"only {self.length} are kept", "Write no more than these")

    def history(self) -> History:
        return History(self.length, self.models_read)


class TaskBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("event",)
    event: Word = ""
    """The event that is predicted."""
    target: Annotated[Any, choice(("happened", "value"))] = "happened"
    """Whether it happens, or its value."""
    given: Word = ""
    """Another task: this one is learned only from items for which that has happened."""

    def task(self, name: str, events: Mapping[str, Event | None], tasks: Collection[str]) -> Task:
        event = events.get(self.event)
        if self.event and self.event not in events:
            self.files.unknown(self.at("event"), "event", self.event, events)
        elif event and event.impression:
            self.wrong("event", "every item shown has an impression", "Name what users do then")
        if event and self.target == "value" and event.value is None:
            self.wrong("target", f"{self.event} has no value", "Declare `value:` of that event")
        if self.given == name:
            self.wrong("given", "a task cannot be given itself", "Delete this key")
        elif self.given and self.given not in tasks:
            self.files.unknown(self.at("given"), "task", self.given, tasks)
        return Task(name=name, event=self.event, target=self.target, given=self.given)


def tasks_of(
    blocks: Mapping[str, TaskBlock], events: Mapping[str, Event | None]
) -> dict[str, Task]:
    """The tasks by name; what is wrong between them is reported."""
    tasks = {name: block.task(name, events, blocks) for name, block in blocks.items()}
    for name, block in blocks.items():
        seen, at = {name}, tasks[name].given
        while at in tasks and at not in seen:
            seen.add(at)
            at = tasks[at].given
        if at == name and tasks[name].given != name:
            block.wrong("given", f"{name} is given itself, by way of others", "Break the circle")
    return tasks


# Parameters of every domain are called so; a weight is one, too, under the same prefix.
TAKEN = ("diversity", "exploration", "epsilon", "temperature", "exploration_depth")


class WeightBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("default",)
    default: Number = 0.0
    """What it is where no experiment sets it."""
    min: Number = 0.0
    """The least that an experiment may set."""
    max: Number = 100.0
    """The most that an experiment may set."""

    def check(self) -> None:
        for key in ("default", "min", "max"):
            if abs(getattr(self, key)) >= MOST:
                self.wrong(key, "this is more than a float32 holds", f"Write less than {MOST:g}")
        if not self.min <= self.default <= self.max and self.clean:
            reason = f"{self.default:g} is not from {self.min:g} to {self.max:g}"
            self.wrong("default", reason, "Write one that is, or other bounds")

    def weight(self, name: str) -> Weight:
        return Weight(name, self.default, self.min, self.max)


class ValueBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("formula",)
    formula: Text = ""
    """What lists are ordered by: arithmetic over tasks and weights, `click * (1 + w * like)`."""
    weights: Named[WeightBlock] = EMPTY
    """Numbers of the formula that experiments may set, each a parameter."""

    def declared(self, tasks: Collection[str]) -> dict[str, Weight]:
        """The weights; those that no formula reads are no mistake of their own."""
        for name, block in self.weights.items():
            if name in tasks:
                reason = f"there is a task {name}, too"
                self.files.add(block.place.of_key, reason, "Give the weight another name")
            elif name in TAKEN:
                reason = f"rerank.{name} is a parameter of every domain"
                self.files.add(block.place.of_key, reason, "Give the weight another name")
        return {name: block.weight(name) for name, block in self.weights.items()}


def check_formula(
    block: Section, key: str, tasks: Collection[str], weights: Mapping[str, Weight], whole: bool
) -> None:
    """Report what is wrong with a formula; without `whole`, there may be other names."""
    text = str(getattr(block, key))
    if not text:
        return
    try:
        formula = Formula(text)
    except FormulaError as error:
        fix = "Write names of tasks and weights, numbers, + - * / and parentheses"
        block.wrong(key, f"{text!r} is no formula: {error}", fix)
        return
    known = [*tasks, *weights]
    strange = [name for name in formula.names if name not in known]
    if not whole:
        return
    for name in strange:
        block.wrong(key, f"there is no task or weight {name!r}", suggestion(name, known))
    if strange:
        return
    if not any(name in tasks for name in formula.names):
        block.wrong(key, "it reads no task, so every item has the same value", "Name a task in it")
    # Scores unlike each other and unlike what anybody subtracts from them.
    of = {name: np.float32(0.37 + 0.0123 * i) for i, name in enumerate(tasks)}
    if not np.isfinite(formula(of | {w.name: np.float32(w.default) for w in weights.values()})):
        reason = "its value is not finite where the weights are at their defaults"
        block.wrong(key, reason, "Divide by what is not 0")


class SurfaceBlock(Section):
    value: Text = ""
    """Its own value formula; default: that of `value`."""
    seeds: Annotated[int, whole(0, 100)] = 0
    """How many items a request may start from: 1 on a product's page, the cart's on the cart."""

    def surface(self, name: str, formula: str) -> Surface:
        return Surface(name, self.value or formula, self.seeds)


class TablesBlock(Section):
    storage: Annotated[Storage, choice(get_args(Storage))] = "per_field"
    """per_field: a row for each id of each field; hashed: at most `rows` rows for each field;
    unified: `rows` rows for all fields together."""
    rows: Annotated[int, whole(16, 100_000_000)] = 100_000
    """How many rows the tables have."""
    lookups: Annotated[int, whole(1, 8)] = 2
    """Of unified tables: how many rows make the vector of an id."""

    def check(self) -> None:
        if not self.clean:
            return
        if self.storage == "per_field" and self.has("rows"):
            self.wrong("rows", "every id has a row of its own", "Delete this key")
        if self.storage != "unified" and self.has("lookups"):
            self.wrong("lookups", "only unified tables look up several rows", "Delete this key")

    def tables(self) -> Tables:
        return Tables(self.storage, self.rows, self.lookups)
