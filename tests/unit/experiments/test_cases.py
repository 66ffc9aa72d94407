"""tests/cases/assignment.json against the code, and against the contract written down again."""

import json
from typing import Any

import pytest
import xxhash

from services.experiments import config_reader
from services.experiments.assignment import Assigner, xxh3_64
from tests.cases import generate

CASES: dict[str, Any] = json.loads(generate.FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "digest"),
    [("", 0x2D06800538D394C2), ("a", 0xE6C632B61E964E1F), ("abc", 0x78AF5F94892F3950)],
)
def test_the_hash_is_xxh3_64_with_seed_0(text: str, digest: int) -> None:
    assert xxh3_64(text) == digest


def test_the_case_file_is_what_its_script_writes() -> None:
    assert generate.FILE.read_text(encoding="utf-8") == generate.text()


def test_the_case_file_covers_every_outcome() -> None:
    outcomes = {
        (layer, outcome["arm"], outcome["overridden"]) if outcome else (layer, None)
        for case in CASES["assignments"]
        for layer, outcome in case["layers"].items()
    }
    assert len(CASES["assignments"]) >= 200
    assert outcomes == {
        ("value", None),
        ("value", "control", False),
        ("value", "treatment", False),
        ("value", "control", True),
        ("value", "treatment", True),
        ("value", "a", False),
        ("value", "b", False),
        ("value", "c", False),
        ("value", "by_invitation", True),
        ("retrieval", None),
        ("retrieval", "shallow", False),
        ("retrieval", "deep", False),
    }


def test_hashes_and_buckets_agree_with_the_case_file() -> None:
    for case in CASES["hashes"]:
        h = xxh3_64(f"{case['salt']}:{case['unit']}")
        assert (str(h), h % 10_000, (h >> 32) % 10_000) == (
            case["hash"],
            case["bucket"],
            case["enrolment_bucket"],
        )


def test_assignments_agree_with_the_case_file() -> None:
    assigner = Assigner(config_reader.parse(json.dumps(CASES["config"]).encode(), "cases"))
    for case in CASES["assignments"]:
        decision = assigner.assign(case["user_id"], case["session_id"])
        got = dict.fromkeys(case["layers"]) | {
            a.layer: {"experiment": a.experiment, "arm": a.arm, "overridden": a.overridden}
            for a in decision.assignments
        }
        assert got == case["layers"], case


def test_a_client_that_follows_the_contract_alone_gets_the_same() -> None:
    for case in CASES["assignments"]:
        ids = {"user": case["user_id"], "session": case["session_id"]}
        for layer in CASES["config"]["layers"]:
            expected = case["layers"][layer["name"]]
            assert _contract(layer, ids) == expected, (case, layer["name"])


def _contract(layer: dict[str, Any], ids: dict[str, str]) -> dict[str, Any] | None:
    """The docstring of config.py, word by word, from the JSON alone."""
    experiments = [e for e in layer["experiments"] if e["enabled"]]
    for e in experiments:
        if arm := e["allow_list"].get(ids[e["unit"]]):
            return {"experiment": e["name"], "arm": arm, "overridden": True}
    for e in experiments:
        unit = ids[e["unit"]]
        bucket = xxhash.xxh3_64_intdigest(f"{layer['salt']}:{unit}".encode()) % 10_000
        if not unit or not e["buckets"][0] <= bucket < e["buckets"][1]:
            continue
        h = xxhash.xxh3_64_intdigest(f"{e['salt']}:{unit}".encode())
        below = 0
        for arm in e["arms"]:
            below += round(arm["weight"] * 100)
            if h % 10_000 < below:
                if (h >> 32) % 10_000 < arm["traffic"] * 100:
                    return {"experiment": e["name"], "arm": arm["name"], "overridden": False}
                return None
    return None
