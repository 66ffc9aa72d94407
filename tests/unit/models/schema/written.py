"""A Declaration as a schema.yaml writes it: what the reader undoes."""

import math
from collections.abc import Iterable
from typing import Any

from models.schema.declaration import (
    NEVER_FADES,
    Count,
    Declaration,
    Derived,
    Event,
    Field,
    Match,
    OnSurface,
    Position,
    Ratio,
    Since,
)

UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def written(of: Declaration) -> dict[str, Any]:
    """The whole file, as what YAML and JSON hold."""
    return {
        "format": 1,
        "events": {event.name: _event(event) for event in of.events},
        "user": {
            "keep": _time(of.user_keep_s),
            "given": _fields(of.user_given),
            **_counts(of.user_counts),
            "affinities": {
                a.name: _without({"by": list(a.by), "half_life": _time(a.half_life_s)}, a.read_by)
                | ({} if a.field == a.name else {"of": a.field})
                for a in of.affinities
            },
        },
        "context": _fields(of.context),
        "item": {
            "keep": _time(of.item_keep_s),
            "fields": _fields(of.item_fields),
            "display": list(of.display),
            **_counts(of.item_counts),
            "eligible": [condition.text for condition in of.eligible],
        },
        "derived": {each.name: _derived(each) for each in of.derived},
        "history": {"length": of.history.length, "models_read": of.history.models_read},
        "tasks": {
            task.name: {"event": task.event, "target": task.target}
            | ({"given": task.given} if task.given else {})
            for task in of.tasks
        },
        "value": {
            "formula": of.formula,
            "weights": {
                w.name: {"default": w.default, "min": w.low, "max": w.high} for w in of.weights
            },
        },
        "surfaces": {
            s.name: {"seeds": s.seeds} | ({} if s.formula == of.formula else {"value": s.formula})
            for s in of.surfaces
        },
        "tables": {"storage": of.tables.storage}
        | ({} if of.tables.storage == "per_field" else {"rows": of.tables.rows})
        | ({"lookups": of.tables.lookups} if of.tables.storage == "unified" else {}),
    } | ({"diversity": of.diversity} if of.diversity else {})


def _without(keys: dict[str, Any], read_by: str) -> dict[str, Any]:
    return keys if read_by == "both" else keys | {"models": read_by}


def _time(seconds: float) -> str:
    if seconds == NEVER_FADES:
        return "none"
    unit = next(unit for unit, s in UNITS.items() if seconds % s == 0)
    return f"{int(seconds // UNITS[unit])}{unit}"


def _event(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {"id": event.id, "properties": _fields(event.properties)}
    if event.impression:
        return found | {"role": "impression"}
    found |= {"history": event.history, "upgrades": list(event.upgrades)}
    if event.value:
        found["value"] = {"unit": event.value.unit, "min": event.value.low}
        if event.value.replaces:
            found["value"]["repeats"] = "replace"
        if event.value.high < math.inf:
            found["value"]["max"] = event.value.high
    return found


def _fields(of: Iterable[Field]) -> dict[str, Any]:
    return {field.name: _field(field) for field in of}


def _field(field: Field) -> dict[str, Any]:
    found: dict[str, Any] = {"type": field.type}
    if field.vocabulary:
        source = field.vocabulary.source
        found[source] = list(field.vocabulary.values) or field.vocabulary.size
    if field.default is not None:
        found["default"] = field.default
    if field.scale != ("log" if field.type == "time" else "linear"):
        found["scale"] = field.scale
    for key in {"bag": ["slots"], "text": ["slots", "buckets"], "numbers": ["length"]}.get(
        field.type, ["length", "dtype"] if field.type == "vector" else []
    ):
        found[key] = getattr(field, key)
    if field.type in ("number", "time"):
        found |= {key: getattr(field, key) for key in ("buckets", "period") if getattr(field, key)}
    return _without(found, field.read_by)


def _counts(of: Iterable[Count]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {"counts": {}, "sums": {}}
    for count in of:
        block = found["sums" if count.of_value else "counts"]
        entry = block.setdefault(count.event, _without({"half_lives": []}, count.read_by))
        entry["half_lives"].append(_time(count.half_life_s))
    return found


def _derived(of: Derived) -> dict[str, Any]:
    if isinstance(of, Ratio):
        keys = {"ratio": [of.above, of.below], "side": of.side, "half_life": _time(of.half_life_s)}
        return _without(keys, of.read_by)
    if isinstance(of, Since):
        return _without({"since": of.event}, of.read_by)
    if isinstance(of, Match):
        return _without({"match": of.affinity}, of.read_by)
    if isinstance(of, OnSurface):
        return _without({"surface": True}, of.read_by)
    if isinstance(of, Position):
        return _without({"position": of.places}, of.read_by)
    return _without({"pool": list(of.events)}, of.read_by)
