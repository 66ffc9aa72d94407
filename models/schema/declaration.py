"""What a domain is: the values of a schema.yaml, read and checked (`models/schema/read.py`).

Events are what users do; fields are what is known of users, items, a request, or a user and an item
together; tasks are what models predict of an item shown to a user, and the value formula is what
lists are ordered by. Nothing else in the code names an event, a field, a task or a surface.

Every field has a side, a default and `read_by`, which says which models read it. Half-lives are in
seconds, infinity where nothing fades.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, get_args

ReadBy = Literal["both", "retrieval", "ranking", "none"]
FieldType = Literal["category", "bag", "number", "flag", "time", "vector", "text", "numbers"]
Scale = Literal["linear", "log", "standardised", "quantiles", "cyclic"]
Source = Literal["values", "learned", "hashed"]
Target = Literal["happened", "value"]
Storage = Literal["per_field", "hashed", "unified"]

# Types of what comes with a request as words, and not as a number.
TEXTS: tuple[FieldType, ...] = ("category", "text")
FIELD_TYPES: tuple[FieldType, ...] = get_args(FieldType)
NEVER_FADES = math.inf
ANY = "any"  # of the events
MAX_ID_BYTES = 256  # of a user, an item, a unit, as UTF-8
LARGEST_ID = 255  # of an event: histories keep it in a byte

# What experiments measure besides events, so that no event has such a name. request: asked,
# answered or not; error: got no answer; degraded: answered although a stage failed or was late;
# latency: sum of the router's stage times of an answer, in ms.
SERVING = ("request", "error", "degraded", "latency")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The values of a category or bag. Of a declared list value i has id i + 1, for ever; what is
    learned or hashed is stored as a hash of its text, and the model that reads it numbers it."""

    source: Source
    size: int  # of the declared list; else at most so many ids beside 0, the unknown value
    values: tuple[str, ...] = ()

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each declared value."""
        return {value: i for i, value in enumerate(self.values, 1)}

    def lists(self, text: str) -> bool:
        """Whether this can be a value: where values are declared, it must be one of them."""
        return self.source != "values" or text in self.ids


@dataclass(frozen=True, kw_only=True)
class Field:
    """Something that is known of a user, an item or a request, or with an event (a property)."""

    name: str
    type: FieldType
    vocabulary: Vocabulary | None = None  # of a category or bag
    slots: int = 1  # of a bag: values kept; of a text: n-grams kept
    buckets: int = 0  # of a number with quantiles, of a text: hashes
    scale: Scale = "linear"  # how models read a number
    period: float = 0.0  # of a cyclic number
    length: int = 1  # of a vector or numbers
    dtype: Literal["float16", "float32"] = "float32"  # of a vector
    default: str | float | bool | None = None  # None: unknown
    read_by: ReadBy = "both"
    line: int = field(default=0, compare=False)  # of the file


@dataclass(frozen=True, kw_only=True)
class Amount:
    """The number that comes with an event: a price, seconds watched."""

    unit: str
    low: float = 0.0
    high: float = math.inf
    replaces: bool = False  # what another one in the same visit means: stars; prices add up
    line: int = field(default=0, compare=False)  # of the file


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something a user does with an item; `id` stands for it in rows and messages, for ever."""

    name: str
    id: int  # 1..LARGEST_ID
    impression: bool = False  # the item was seen in a list: exposure, negatives, position
    history: bool = False  # it enters the user's history
    upgrades: tuple[str, ...] = ()  # it turns these entries of the same item into its own
    value: Amount | None = None
    properties: tuple[Field, ...] = ()
    line: int = field(default=0, compare=False)  # of the file


@dataclass(frozen=True, kw_only=True)
class Count:
    """How often an event happened (`of_value`: the sum of its values), fading by half each
    `half_life_s`."""

    event: str
    half_life_s: float = NEVER_FADES
    of_value: bool = False
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """How much of a user's events fell to each value of an item's category or bag."""

    name: str
    field: str
    by: tuple[str, ...]
    half_life_s: float = NEVER_FADES
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One count of a side over another of the same half-life: clicks per impression."""

    name: str
    above: str
    below: str
    side: Literal["user", "item"]
    half_life_s: float = NEVER_FADES
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class Since:
    """Seconds from the user's newest event (ANY, or one kind) to the request."""

    name: str
    event: str
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class Match:
    """How much of an affinity falls to the candidate's values of its field."""

    name: str
    affinity: str
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The items of the history, those of some events, as one."""

    name: str
    events: tuple[str, ...]  # (ANY,): all
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class OnSurface:
    """The surface that the list is for."""

    name: str
    read_by: ReadBy = "both"


@dataclass(frozen=True, kw_only=True)
class Position:
    """The place in the list at which an item was seen. Candidates are all taken to have one and the
    same, so that what a place does for an event is not put down to the items that had it."""

    name: str
    places: int  # told apart; those behind are one
    read_by: ReadBy = "both"  # of retrieval: nothing


Derived: TypeAlias = Ratio | Since | Match | Pool | OnSurface | Position


@dataclass(frozen=True)
class History:
    length: int = 200  # entries kept per user
    models_read: int = 50  # the newest of them


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model predicts of an item shown: that an event happens, or the value of it; of those
    rows alone where `given` has happened."""

    name: str
    event: str
    target: Target = "happened"
    given: str = ""  # another task


@dataclass(frozen=True)
class Weight:
    """A number of the value formula that experiments may set."""

    name: str
    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Condition:
    """What an item must fulfil to be shown: its field, compared with a field of the user or the
    request, with the time of the request (`now`), or with a constant."""

    text: str
    field: str
    compare: Literal["is", "is not", "has", "==", "!=", "<", "<=", ">", ">="]
    side: Literal["", "user", "context", "now"] = ""  # what it is compared with; "": `constant`
    of: str = ""
    constant: str | float | None = None


@dataclass(frozen=True)
class Surface:
    name: str
    formula: str  # its value formula
    seeds: int = 0  # items that a request may give to start from


@dataclass(frozen=True)
class Tables:
    """How features share the rows of an embedding table (`models/layers/embedding_tables.py`)."""

    storage: Storage = "per_field"
    rows: int = 100_000
    lookups: int = 2


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A whole schema.yaml. The order is the file's; references are to names that are there."""

    events: tuple[Event, ...]
    user_keep_s: float = NEVER_FADES  # how long after the last event a user's rows count
    item_keep_s: float = NEVER_FADES
    user_given: tuple[Field, ...] = ()
    user_counts: tuple[Count, ...] = ()
    affinities: tuple[Affinity, ...] = ()
    context: tuple[Field, ...] = ()
    item_fields: tuple[Field, ...] = ()
    display: tuple[str, ...] = ()
    item_counts: tuple[Count, ...] = ()
    eligible: tuple[Condition, ...] = ()
    derived: tuple[Derived, ...] = ()
    history: History = field(default_factory=History)
    tasks: tuple[Task, ...]
    formula: str
    weights: tuple[Weight, ...] = ()
    diversity: str = ""  # an item field
    surfaces: tuple[Surface, ...] = ()
    tables: Tables = field(default_factory=Tables)

    @cached_property
    def event(self) -> Mapping[str, Event]:
        """Events by name."""
        return {event.name: event for event in self.events}

    @cached_property
    def not_obeyed(self) -> tuple[str, ...]:
        """What is read and checked, and not obeyed so far; said where somebody may rely on it."""
        seeds = [f"surfaces.{surface.name}.seeds" for surface in self.surfaces if surface.seeds]
        return (*(["item.eligible"] if self.eligible else []), *seeds)

    @cached_property
    def surface_names(self) -> tuple[str, ...]:
        """That a request may name, the one that goes without saying first."""
        return tuple(surface.name for surface in self.surfaces) or ("home",)

    @cached_property
    def surface_ids(self) -> Mapping[str, int]:
        """What stands for each surface where models read it; 0 is none of them."""
        return {surface.name: i for i, surface in enumerate(self.surfaces, 1)}

    @cached_property
    def item_field(self) -> Mapping[str, Field]:
        """Fields of items by name."""
        return {each.name: each for each in self.item_fields}
