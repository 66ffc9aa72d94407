"""The keys of an experiments file: one definition for the reader and for editors.

Each block below is a mapping of the file. The reader takes from it which keys there are and which
must be; `json_schema` makes of the same blocks the JSON Schema that `tandem experiments schema`
prints. The schema accepts whatever the reader accepts and is coarser: it knows keys, types and
ranges, but not what spans several values (weights that add up, buckets that overlap, who owns a
parameter, moving changes). `tandem experiments validate` knows everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

from services.experiments.declare.config import BUCKETS, SESSION, USER, Gate, Interleave
from services.experiments.declare.metrics import (
    ALLOWED_PER,
    DEFAULT_OBSERVE_S,
    DEFAULT_PLANNED_UNITS,
    DEFAULT_SERVING_OBSERVE_S,
    DEFAULT_WINDOW_S,
    SOURCES,
    Better,
    MetricKind,
)
from services.experiments.declare.parameters import MODEL_NAME, PARAMETERS, ParameterSpec
from services.experiments.declare.targeting import (
    MEMBERSHIP,
    NUMBER_OPERATORS,
    SURFACE_OPERATORS,
    USER_FEATURES,
)
from services.experiments.statistics.moments import LARGEST

VERSION = 1
UNITS = (USER, SESSION)  # without those that a file declares
KINDS = get_args(MetricKind)
BETTER = get_args(Better)
GATES = get_args(Gate)
INTERLEAVES = get_args(Interleave)
MAX_SECONDS = 30 * 86_400
MAX_UNITS = 10**9
MAX_LIFT = 10
MAX_DECLARED_UNITS = 8  # as many as a request may give ids of
MAX_SEGMENTS = 16
MAX_STEPS = 20
DEFAULT_HOLD_S = 3600.0
DEFAULT_MIN_UNITS = 100
MAX_ID_BYTES = 256
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# RFC 3339 with whole milliseconds at most.
TIMESTAMP = re.compile(
    r"[12]\d{3}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,3})?(Z|[+-]\d{2}:\d{2})", re.ASCII
)

Schema: TypeAlias = dict[str, Any]


class Key(NamedTuple):
    """A key of a mapping: the JSON Schema of its value, and whether it must be there."""

    name: str
    schema: Schema
    required: bool = False


Block: TypeAlias = tuple[Key, ...]


def names(block: Block) -> list[str]:
    """The keys of a block, those that must be there first."""
    return [k.name for k in sorted(block, key=lambda key: not key.required)]


def _mapping(block: Block, description: str = "") -> Schema:
    about = {"description": description} if description else {}
    return about | {
        "type": "object",
        "properties": {key.name: key.schema for key in block},
        "required": [key.name for key in block if key.required],
        "additionalProperties": False,
    }


def _list(items: Schema, description: str, minimum: int = 0) -> Schema:
    return {"description": description, "type": "array", "items": items, "minItems": minimum}


def _name(description: str) -> Schema:
    return {"description": description, "type": "string", "pattern": f"^{NAME.pattern}$"}


def _percent(description: str) -> Schema:
    text = f"{description} At most two decimals."
    return {"description": text, "type": "number", "minimum": 0, "maximum": 100}


def _instant(description: str) -> Schema:
    return {
        "description": f"{description} An RFC 3339 timestamp with its zone: 2026-12-01T09:00:00Z.",
        "type": "string",
        "format": "date-time",
        "pattern": f"^{TIMESTAMP.pattern}$",
    }


def _positive(description: str, maximum: float, kind: str = "number") -> Schema:
    return {
        "description": description,
        "type": kind,
        "exclusiveMinimum": 0,
        "maximum": maximum,
    }


def _id(description: str) -> Schema:
    return {"description": description, "minLength": 1, "maxLength": MAX_ID_BYTES}


def _parameter(spec: ParameterSpec) -> Schema:
    schema: Schema = {
        "description": f"{spec.meaning}; {spec.accepts}",
        "default": spec.default,
    }
    match spec.default:
        case bool():
            return schema | {"type": "boolean"}
        case int() | float():
            schema["type"] = "integer" if isinstance(spec.default, int) else "number"
            if math.isfinite(spec.low):
                schema["minimum"] = spec.low
            if math.isfinite(spec.high):
                schema["maximum"] = spec.high
            return schema
        case _ if spec.choices:
            return schema | {"enum": list(spec.choices)}
        case _:
            return schema | {"type": "string", "pattern": f"^{MODEL_NAME.pattern}$"}


def _operators(operators: Sequence[str], operand: Schema, what: str) -> Schema:
    """Operators with one operand for comparisons and a list for membership."""
    return {
        "description": f"What must hold of {what}; several operators must all hold.",
        "type": "object",
        "properties": {
            name: _list(operand, f"{name.replace('_', ' ')} this list", 1)
            if name in MEMBERSHIP
            else operand
            for name in operators
        },
        "additionalProperties": False,
        "minProperties": 1,
    }


PARAMETER_NAMES = _list(
    {"type": "string", "enum": list(PARAMETERS)},
    "The parameters that the layer owns: no other layer may touch them.",
)

ARM: Block = (
    Key("name", _name("The arm's name, unlike those of the experiment's other arms."), True),
    Key(
        "weight",
        _percent(
            "Percent of the experiment's units that belong to the arm; the weights add up to 100. "
            "Every arm needs one, unless the experiment interleaves: then none has."
        ),
    ),
    Key("traffic", _percent("Percent of the arm's units that are in; default: the experiment's.")),
    Key(
        "parameters",
        _mapping(
            tuple(Key(spec.name, _parameter(spec)) for spec in PARAMETERS.values()),
            "What the arm changes; each must be a parameter that the layer owns.",
        ),
    ),
    Key(
        "stopped",
        {
            "description": "true takes the arm out: its units get control's parameters and are "
            "not counted. Not of control.",
            "type": "boolean",
        },
    ),
)

RAMP: Block = (
    Key(
        "steps",
        {
            "description": "Percent of each arm's units that are in, one step after the other; "
            "ascending, at most two decimals.",
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            "minItems": 1,
            "maxItems": MAX_STEPS,
        },
        True,
    ),
    Key(
        "hold_s",
        _positive(
            f"A step lasts at least so many seconds; default: {DEFAULT_HOLD_S:g}.", MAX_SECONDS
        ),
    ),
    Key(
        "min_units",
        {
            "description": "And until so many units that were first exposed in it have a final "
            f"outcome; default: {DEFAULT_MIN_UNITS}.",
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_UNITS,
        },
    ),
    Key(
        "gate",
        {
            "description": "What must hold for the next step: no guardrail is breached (the "
            "default), or all guardrails are shown to hold.",
            "enum": list(GATES),
        },
    ),
)

WHERE: Block = (
    Key(
        "surface", _operators(SURFACE_OPERATORS, {"type": "string", "minLength": 1}, "the surface")
    ),
    Key(
        "context",
        {
            "description": "By name of a context value: what must hold of it. A request without "
            "the value fulfils nothing.",
            "type": "object",
            "propertyNames": _id("The name of a context value."),
            "additionalProperties": _operators(NUMBER_OPERATORS, {"type": "number"}, "the value"),
        },
    ),
    Key(
        "user",
        _mapping(
            tuple(
                Key(name, _operators(NUMBER_OPERATORS, {"type": "number"}, f"the user's {name}"))
                for name in USER_FEATURES
            ),
            "By name of a count in the user's profile: what must hold of it. A user without a "
            "profile fulfils nothing.",
        ),
    ),
)

SEGMENT: Block = (
    Key("name", _name("The segment's name, unlike those of all others."), True),
    Key("where", _mapping(WHERE, "What a request must fulfil to be in the segment."), True),
)

GOAL: Block = (
    Key("metric", _name("The name of a metric."), True),
    Key(
        "minimal_effect",
        _positive("The smallest lift of interest, as a share of control: 0.02 is 2 %.", MAX_LIFT),
        True,
    ),
)

# One of the two margins must be there, which this schema leaves to `validate`.
GUARDRAIL: Block = (
    Key("metric", _name("The name of a metric."), True),
    Key(
        "allowed_harm",
        _positive("Tolerated change to the worse as a share of control: 0.05 is 5 %.", MAX_LIFT),
    ),
    Key(
        "allowed_absolute_harm",
        _positive("The same in the metric's own unit, for a metric that may be 0.", LARGEST),
    ),
    Key(
        "observe_s",
        _positive(
            "A unit's requests count for so many seconds in this test; default: at most "
            f"{DEFAULT_SERVING_OBSERVE_S:g} for metrics of serving, else the experiment's.",
            MAX_SECONDS,
        ),
    ),
)

METRIC: Block = (
    Key("name", _name("The metric's name, unlike those of all others."), True),
    Key(
        "kind",
        {
            "description": "binary: share of units with any; mean: number per unit; ratio: one "
            "thing per other; quantile: of single requests.",
            "enum": list(KINDS),
        },
        True,
    ),
    Key("of", {"description": "What is counted.", "enum": list(SOURCES)}, True),
    Key("better", {"description": "Which direction is good.", "enum": list(BETTER)}, True),
    Key("per", {"description": "What a ratio divides by.", "enum": list(ALLOWED_PER)}),
    Key(
        "quantile",
        {
            "description": "Which quantile: 0.99 is the 99th percentile.",
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
        },
    ),
    Key(
        "window_s",
        _positive(
            "Feedback counts up to so many seconds after its request; default: "
            f"{DEFAULT_WINDOW_S:g}.",
            MAX_SECONDS,
        ),
    ),
)

EXPERIMENT: Block = (
    Key("name", _name("The experiment's name, unlike those of all others."), True),
    Key("arms", _list(_mapping(ARM), "The arms; their order is part of the assignment.", 1), True),
    Key("salt", _name("What units are hashed with; default: the name. A new one deals afresh.")),
    Key("unit", _name("What gets an arm: user (the default), session, or one of `units`.")),
    Key(
        "buckets",
        {
            "description": "First bucket of the layer and the one after the last; default: all.",
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": BUCKETS},
            "minItems": 2,
            "maxItems": 2,
        },
    ),
    Key("enabled", {"description": "false takes everybody out.", "type": "boolean"}),
    Key("start", _instant("Nobody is in before; default: no bound.")),
    Key("stop", _instant("From then on nobody is in; default: no bound.")),
    Key("traffic", _percent("Percent of each arm's units that are in; default: 100.")),
    Key("ramp", _mapping(RAMP, "Traffic that grows by itself, instead of `traffic`.")),
    Key(
        "interleave",
        {
            "description": "Show the rankings of its two arms as one list, and ask which one the "
            "clicks prefer.",
            "enum": list(INTERLEAVES),
        },
    ),
    Key("where", _mapping(WHERE, "What a request must fulfil to be in; default: nothing.")),
    Key(
        "allow_list",
        {
            "description": "Unit id -> arm, whatever the hash; left out of all statistics.",
            "type": "object",
            "propertyNames": _id("A unit's id; quoted unless it is a whole number."),
            "additionalProperties": _name("The name of an arm."),
        },
    ),
    Key("primary", _mapping(GOAL, "The one metric that decides.")),
    Key("secondary", _list(_mapping(GOAL), "Further metrics, judged together (Holm).")),
    Key("guardrails", _list(_mapping(GUARDRAIL), "Metrics that must not get worse.")),
    Key(
        "observe_s",
        _positive(
            "A unit's requests count for so many seconds from its first exposure on; default: "
            f"{DEFAULT_OBSERVE_S:g}.",
            MAX_SECONDS,
        ),
    ),
    Key(
        "window_s",
        _positive(
            "Of an interleaving experiment: clicks count up to so many seconds after their "
            f"request; default: {DEFAULT_WINDOW_S:g}.",
            MAX_SECONDS,
        ),
    ),
    Key(
        "planned_units",
        _positive(
            "Units of all arms together that are planned for, where the intervals are narrowest; "
            f"default: {DEFAULT_PLANNED_UNITS}.",
            MAX_UNITS,
            "integer",
        ),
    ),
)

LAYER: Block = (
    Key("name", _name("The layer's name, unlike those of all others."), True),
    Key(
        "experiments",
        _list(_mapping(EXPERIMENT), "Experiments that exclude each other."),
        True,
    ),
    Key("salt", _name("What units are hashed with; default: the name.")),
    Key("parameters", PARAMETER_NAMES),
)

HOLDOUT: Block = (
    Key("percent", _percent("Percent of users who are in no experiment at all."), True),
    Key("salt", _name("What users are hashed with; default: holdout.")),
)

FILE: Block = (
    Key("version", {"description": "Of this format.", "const": VERSION}, True),
    Key("layers", _list(_mapping(LAYER), "Layers deal units independently of each other."), True),
    Key("holdout", _mapping(HOLDOUT, "Users kept out of all experiments, in one file only.")),
    Key("metrics", _list(_mapping(METRIC), "What experiments are judged by; in any file.")),
    Key(
        "units",
        _list(
            _name("A unit whose id requests may carry: household, device."),
            "Units beside user and session by whose ids experiments may assign; in any file.",
        )
        | {"maxItems": MAX_DECLARED_UNITS},
    ),
    Key(
        "segments",
        _list(_mapping(SEGMENT), "Parts of the requests, to look at effects in; in any file.")
        | {"maxItems": MAX_SEGMENTS},
    ),
)


def json_schema() -> Schema:
    """The JSON Schema (draft 7, which editors know best) of an experiments file."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Tandem experiments",
    } | _mapping(FILE)
