"""The kinds of values that experiments files alone have."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic_core import PydanticOmit

from models.schema.declaration import MAX_ID_BYTES
from models.yaml_reader.places import Place, Wrong
from models.yaml_reader.values import FLOAT, INT, NAME_SCHEMA, STR, Reads, finite, text_of, value_of
from services.experiments.declare.config import BUCKETS

PERCENT = re.compile(r"\d{1,3}(\.\d{1,2})?")


def _percent(place: Place) -> int:
    """A percentage as a number of buckets, exactly."""
    tag, text = place.plain
    if tag in (INT, FLOAT) and PERCENT.fullmatch(text) and Decimal(text) <= 100:
        return int(Decimal(text) * 100)
    raise Wrong(
        f"{text!r} is not a percentage",
        "Write a number from 0 to 100 with at most two decimals, without a percent sign",
    )


def _buckets(place: Place) -> tuple[int, int]:
    plain = [child.plain for child in place.items()]
    bounds = [int(text) for tag, text in plain if tag == INT and re.fullmatch(r"\d{1,5}", text)]
    if len(plain) == len(bounds) == 2 and bounds[0] < bounds[1] <= BUCKETS:
        return bounds[0], bounds[1]
    raise Wrong(
        "this is not a range of buckets",
        f"Write [first, end] with 0 <= first < end <= {BUCKETS}; end is not in the range",
    )


def _listed_unit(place: Place) -> tuple[str, Place]:
    """The arm that an entry of an allow-list names, and where."""
    tag, unit = place.of_key.plain
    if tag != STR and not (tag == INT and re.fullmatch(r"0|-?[1-9]\d*", unit)):
        raise Wrong("this id could be read in two ways", "Put it in quotes", place.of_key)
    if not 1 <= len(unit.encode()) <= MAX_ID_BYTES:
        fix = f"Use an id of 1 to {MAX_ID_BYTES} bytes"
        raise Wrong("the id is empty or too long", fix, place.of_key)
    return text_of(place), place


# As a number of buckets; None is a wrong one.
Percent = Annotated[
    int | None, Reads(_percent, {"type": "number", "minimum": 0, "maximum": 100}, None)
]
Number = Annotated[
    float, finite("Write a finite number: context values and user features are numbers")
]
Buckets = Annotated[
    tuple[int, int],
    Reads(
        _buckets,
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": BUCKETS},
            "minItems": 2,
            "maxItems": 2,
        },
        (0, 0),
    ),
]
# What there is of the domain is looked at by the sections that have them.
ParameterName = Annotated[str, Reads(text_of, {"type": "string"}, "")]
Override = Annotated[tuple[Any, Place], Reads(lambda place: (value_of(place), place), {})]
ListedUnit = Annotated[tuple[str, Place], Reads(_listed_unit, NAME_SCHEMA, PydanticOmit)]
