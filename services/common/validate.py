"""The edge of Recommend: what a request may hold. Each refusal names the field and the limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from prometheus_client import Counter

from models.schema.declaration import MAX_ID_BYTES, TEXTS, Field
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.common.rpc import invalid

MAX_ITEMS = 500
MAX_CONTEXT = 32
MAX_UNIT_IDS = 8
MAX_EXCLUDED = 1_000
MAX_TEXT_BYTES = 1_024  # of a context field of type text
MOST_NUMBER = 1e38  # a float32 holds little more
# Of a time: less is seconds, or 1966 to 1973; 2200.
LEAST_MS, LATEST_MS = 1e11, 7_258_118_400_000
NOTHING_DECLARED: Mapping[str, Field] = {}

UNDECLARED_VALUES = Counter(
    "tandem_context_undeclared_values_total",
    "Values of context fields that schema.yaml does not list: the field's default counted for the"
    " request; many mean that a client and schema.yaml have drifted apart.",
    ["field"],
)


def check_id(field: str, value: str, *, required: bool = True) -> None:
    """Refuse an empty (unless optional) id or one of more than 256 bytes of UTF-8."""
    if not value:
        if required:
            raise invalid(field, f"is empty; give 1..{MAX_ID_BYTES} bytes")
        return
    # Most ids are short: UTF-8 is at most four bytes a character.
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode()) > MAX_ID_BYTES:
        raise invalid(
            field, f"has {len(value.encode())} bytes; at most {MAX_ID_BYTES} are accepted"
        )


def check_surface(surface: str, surfaces: Collection[str]) -> None:
    """Refuse a surface that is not declared."""
    if surface not in surfaces:
        # Cut: a status message travels as a header, whose size is limited.
        raise invalid(
            "surface", f"{surface[:64]!r} is unknown; known: {', '.join(sorted(surfaces))}"
        )


def check_context(context: Mapping[str, float]) -> None:
    """Refuse too many context values, names that are no ids, and values that are not finite."""
    if len(context) > MAX_CONTEXT:
        raise invalid("context", f"has {len(context)} keys; at most {MAX_CONTEXT} are accepted")
    for name, value in context.items():
        check_id("context key", name)
        if not math.isfinite(value):
            raise invalid(f"context[{name!r}]", f"is {value}; only finite numbers are accepted")


def check_declared(request: RecommendRequest, declared: Mapping[str, Field]) -> None:
    """Refuse texts that schema.yaml does not declare, and declared fields of the other kind.
    Numbers that it does not declare are for the conditions of experiments."""
    for name, value in request.context.items():
        if (field := declared.get(name)) is None:
            continue
        if field.type in TEXTS:
            raise invalid(f"context[{name!r}]", f"is a {field.type}: send a text in context_text")
        if field.type == "flag" and value not in (0, 1):
            raise invalid(f"context[{name!r}]", f"is a flag, and {value:g} is neither 0 nor 1")
        if field.type == "number" and abs(value) >= MOST_NUMBER:
            raise invalid(f"context[{name!r}]", f"is {value:g}; give less than {MOST_NUMBER:g}")
        if field.type == "time" and not LEAST_MS <= abs(value) <= LATEST_MS:
            raise invalid(f"context[{name!r}]", f"{value:g} are no ms since 1970 (or are they s?)")
    if len(request.context_text) > MAX_CONTEXT:
        raise invalid(
            "context_text",
            f"has {len(request.context_text)} keys; at most {MAX_CONTEXT} are accepted",
        )
    for name, text in request.context_text.items():
        place = f"context_text[{name[:64]!r}]"
        if (field := declared.get(name)) is None:
            known = ", ".join(each for each in declared if declared[each].type in TEXTS)
            raise invalid(
                place, f"is not declared: add it to `context` of schema.yaml; known: {known or '-'}"
            )
        if field.type not in TEXTS:
            raise invalid(place, f"is a {field.type}: send a number in context")
        limit = MAX_TEXT_BYTES if field.type == "text" else MAX_ID_BYTES
        if len(text.encode()) > limit:
            raise invalid(place, f"has {len(text.encode())} bytes; at most {limit} are accepted")
        if text.strip() and field.vocabulary and not field.vocabulary.lists(text.strip()):
            UNDECLARED_VALUES.labels(name).inc()


def check_unit_ids(unit_ids: Mapping[str, str]) -> None:
    """Refuse too many ids of further units, and names or ids that are empty or too long."""
    if len(unit_ids) > MAX_UNIT_IDS:
        raise invalid("unit_ids", f"has {len(unit_ids)} ids; at most {MAX_UNIT_IDS} are accepted")
    for name, value in unit_ids.items():
        check_id("unit_ids key", name)
        check_id(f"unit_ids[{name!r}]", value)


def check_recommend(
    request: RecommendRequest,
    surfaces: Collection[str],
    declared: Mapping[str, Field] = NOTHING_DECLARED,
) -> None:
    """Raise an INVALID_ARGUMENT Refusal for the first field that is wrong. `declared`: the fields
    of the context, by name."""
    check_id("user_id", request.user_id)
    check_id("session_id", request.session_id, required=False)
    check_surface(request.surface, surfaces)
    if not 1 <= request.num_items <= MAX_ITEMS:
        raise invalid("num_items", f"{request.num_items} is not in 1..{MAX_ITEMS}")
    if request.context:
        check_context(request.context)
    if request.context_text or (declared and request.context):
        check_declared(request, declared)
    if request.unit_ids:
        check_unit_ids(request.unit_ids)
    if request.exclude_item_ids:
        if len(request.exclude_item_ids) > MAX_EXCLUDED:
            raise invalid(
                "exclude_item_ids",
                f"has {len(request.exclude_item_ids)} ids; at most {MAX_EXCLUDED} are accepted",
            )
        for i, item_id in enumerate(request.exclude_item_ids):
            check_id(f"exclude_item_ids[{i}]", item_id)
