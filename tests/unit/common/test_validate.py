"""Bad input is refused at the edge with the field's name."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from models.schema.declaration import Field, Vocabulary
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.common.rpc import Refusal
from services.common.validate import check_recommend, check_unit_ids

SURFACES = frozenset({"home", "detail"})
DEVICES = Vocabulary(source="values", size=2, values=("phone", "desktop"))
DECLARED = {
    field.name: field
    for field in (
        Field(name="device", type="category", vocabulary=DEVICES),
        Field(name="query", type="text", buckets=9),
        Field(name="hour", type="number"),
        Field(name="weekend", type="flag"),
        Field(name="since", type="time"),
    )
}


def good(**changes: object) -> RecommendRequest:
    return RecommendRequest(**{"user_id": "u", "surface": "home", "num_items": 10, **changes})


@pytest.mark.parametrize(
    "request_",
    [
        good(),
        good(num_items=1),
        good(num_items=500),
        good(user_id="x" * 256),
        good(user_id="é" * 128),
        good(unit_ids={f"u{i}": "x" * 256 for i in range(8)}),
        good(context={"hour": 3.5}, exclude_item_ids=["a"] * 1000, session_id="s" * 256),
        good(context={"hour": 3.5, "weekend": 1, "other": 2}, context_text={"query": "é" * 512}),
    ],
)
def test_what_the_api_accepts_passes(request_):
    check_recommend(request_, SURFACES, DECLARED)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (good(user_id=""), "user_id: is empty"),
        (good(user_id="x" * 257), "user_id: has 257 bytes"),
        (good(user_id="é" * 129), "user_id: has 258 bytes"),
        (good(surface="cellar"), "surface: 'cellar' is unknown; known: detail, home"),
        (good(surface=""), "surface: '' is unknown"),
        (good(surface="x" * 9000), "surface: '" + "x" * 64 + "' is unknown"),
        (good(num_items=0), "num_items: 0 is not in 1..500"),
        (good(num_items=501), "num_items: 501"),
        (good(context={"hour": float("nan")}), "context['hour']: is nan"),
        (good(context={"hour": float("inf")}), "context['hour']: is inf"),
        (good(context={str(i): 1.0 for i in range(33)}), "context: has 33 keys"),
        (good(exclude_item_ids=["a", ""]), "exclude_item_ids[1]: is empty"),
        (good(exclude_item_ids=["a"] * 1001), "exclude_item_ids: has 1001 ids"),
        (good(session_id="s" * 257), "session_id: has 257 bytes"),
        (good(unit_ids={str(i): "x" for i in range(9)}), "unit_ids"),
        (good(unit_ids={"household": ""}), "unit_ids"),
        (good(unit_ids={"household": "x" * 257}), "unit_ids"),
        (good(unit_ids={"": "x"}), "unit_ids"),
        (good(context={"device": 1}), "context['device']: is a category: send a text"),
        (good(context={"weekend": 2}), "context['weekend']: is a flag, and 2 is neither"),
        (good(context={"hour": 1e38}), "context['hour']: is 1e+38; give less"),
        (good(context={"since": 1.7e9}), "context['since']: 1.7e+09 are no ms since 1970"),
        (good(context={"since": 1e19}), "context['since']: 1e+19 are no ms"),
        (good(context={"since": 0}), "context['since']: 0 are no ms"),
        (good(context_text={"hour": "3"}), "context_text['hour']: is a number: send a number"),
        (good(context_text={"devise": "x"}), "context_text['devise']: is not declared: add it"),
        (good(context_text={"device": "x" * 257}), "context_text['device']: has 257 bytes"),
        (good(context_text={"query": "é" * 513}), "context_text['query']: has 1026 bytes"),
        (good(context_text={str(i): "x" for i in range(33)}), "context_text: has 33 keys"),
    ],
)
def test_what_is_wrong_is_named(request_, field):
    with pytest.raises(Refusal) as refusal:
        check_recommend(request_, SURFACES, DECLARED)
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(field)


def test_a_value_that_is_not_declared_is_taken_and_counted() -> None:
    def counted() -> float:
        name = "tandem_context_undeclared_values_total"
        return REGISTRY.get_sample_value(name, {"field": "device"}) or 0

    before = counted()
    for value in ("phone", " phone", "", "fridge", "PHONE"):
        check_recommend(good(context_text={"device": value}), SURFACES, DECLARED)
    assert counted() - before == 2


def test_ids_of_further_units_that_the_api_accepts_pass():
    check_unit_ids({})
    check_unit_ids({f"{i}{'é' * 127}": "x" * 256 for i in range(8)})


@pytest.mark.parametrize(
    ("unit_ids", "field"),
    [
        ({str(i): "x" for i in range(9)}, "unit_ids: has 9 ids; at most 8"),
        ({"": "x"}, "unit_ids key: is empty"),
        ({"u" * 257: "x"}, "unit_ids key: has 257 bytes"),
        ({"household": ""}, "unit_ids['household']: is empty"),
        ({"household": "é" * 129}, "unit_ids['household']: has 258 bytes"),
    ],
)
def test_a_wrong_id_of_a_further_unit_is_named(unit_ids, field):
    with pytest.raises(Refusal) as refusal:
        check_unit_ids(unit_ids)
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(field)


TEXTS = ["", "u", "home", "cellar", "x" * 300, "é" * 200, "\0", "phone"]
NUMBERS = [0.0, 1.0, -1.0, 3.5, math.nan, math.inf, 1e38, 1.7e9, 1.7e12, 1e300]
NAMES = ["", "hour", "weekend", "since", "device", "query", "other", "n" * 300]
ODD: dict[str, list[Any]] = {
    "user_id": TEXTS, "session_id": TEXTS, "surface": TEXTS, "num_items": [0, 1, 500, 501, 2**31],
    "exclude_item_ids": [[], ["a"], [""], ["a"] * 1001, ["x" * 300]],
}  # fmt: skip


def refusal_of(request_: RecommendRequest) -> Refusal | None:
    try:
        check_recommend(request_, SURFACES, DECLARED)
    except Refusal as refusal:
        return refusal
    return None


def test_whatever_a_request_holds_is_taken_or_refused_by_a_field_of_it() -> None:
    rng = random.Random(0)
    fields = "|".join(["unit_ids", "context", "context_text", *ODD])
    said: Counter[str] = Counter()
    for _ in range(10_000):
        odd = {name: rng.choice(ODD[name]) for name in rng.sample(list(ODD), rng.randrange(3))}
        for name, values in (("context", NUMBERS), ("context_text", TEXTS), ("unit_ids", TEXTS)):
            if rng.random() < 0.3:
                odd[name] = {rng.choice(NAMES): rng.choice(values) for _ in range(rng.randrange(3))}
        refused = refusal_of(good(**odd))
        if refused is None:
            said["taken"] += 1
            continue
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        field = re.match(rf"({fields})(\[.*?\]| key)?: ", refused.message, re.DOTALL)
        assert field, refused.message
        assert field[1] in odd
        said[field[1]] += 1
    assert said["taken"] > 1000
    assert said.keys() == {"taken", "unit_ids", "context", "context_text", *ODD}
