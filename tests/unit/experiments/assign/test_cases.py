"""tests/cases/assignment.json against the code, and against the contract written down again."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import xxhash

from services.experiments.assign.assignment import Assigner, xxh3_64
from services.experiments.declare import config_reader
from tests.cases import generate
from tests.domains import FILMS

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
    assigner = Assigner(config_reader.parse(json.dumps(CASES["config"]).encode(), "cases", FILMS))
    for case in CASES["assignments"]:
        decision = assigner.assign(case["user_id"], case["session_id"], now_ms=0)
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


def test_the_open_cases_cover_the_holdout_every_experiment_and_both_sides_of_every_instant() -> (
    None
):
    cases = CASES["open_assignments"]
    outcomes = {
        (outcome["experiment"], outcome["overridden"])
        for case in cases
        for outcome in case["layers"].values()
        if outcome
    }
    names = {"winter", "autumn", "detail_only", "evening", "depth_now"}
    assert {name for name, overridden in outcomes if not overridden} == names
    assert {name for name, overridden in outcomes if overridden} >= {"winter", "detail_only"}
    assert 20 < sum(case["held_out"] for case in cases) < len(cases) / 4
    instants = {case["now_ms"] for case in cases}
    assert {1_796_115_599_999, 1_796_115_600_000} <= instants
    assert {1_798_070_400_499, 1_798_070_400_500} <= instants


def test_open_assignments_agree_with_the_case_file() -> None:
    assigner = Assigner(
        config_reader.parse(json.dumps(CASES["open_config"]).encode(), "cases", FILMS)
    )
    for case in CASES["open_assignments"]:
        decision = assigner.assign(
            case["user_id"],
            case["session_id"],
            now_ms=case["now_ms"],
            surface=case["surface"],
            context=case["context"],
        )
        got = dict.fromkeys(case["layers"]) | {
            a.layer: {"experiment": a.experiment, "arm": a.arm, "overridden": a.overridden}
            for a in decision.assignments
        }
        assert (decision.held_out, got) == (case["held_out"], case["layers"]), case


def test_a_client_that_follows_the_contract_alone_gets_the_same_open_assignments() -> None:
    config = CASES["open_config"]
    for case in CASES["open_assignments"]:
        ids = {"user": case["user_id"], "session": case["session_id"]}
        hashed = f"{config['holdout']['salt']}:{ids['user']}".encode()
        below = config["holdout"]["percent"] * 100
        out = bool(ids["user"]) and xxhash.xxh3_64_intdigest(hashed) % 10_000 < below
        assert out == case["held_out"], case
        for layer in config["layers"]:
            mine = layer | {"experiments": [e for e in layer["experiments"] if _open(e, case)]}
            expected = None if out else _contract(mine, ids)
            assert case["layers"][layer["name"]] == expected, (case, layer["name"])


def test_the_cases_of_kinds_cover_every_arm_stopped_and_interleaved_and_every_profile() -> None:
    cases = CASES["kinds_assignments"]
    outcomes = {
        (outcome["experiment"], outcome["arm"], outcome["overridden"])
        for case in cases
        for outcome in case["layers"].values()
        if outcome
    }
    assert outcomes == {
        ("by_household", "first", False),
        ("by_household", "control", False),
        ("by_household", "control", True),  # in place of the stopped arm
        ("by_household", "first", True),  # by the allow-list
        ("interleaves", "interleaved", False),
        ("regulars", "a", False),
        ("regulars", "a", True),
        ("by_device", "interleaved", False),
        ("after", "all", False),
        ("after", "all", True),
    }
    for layer in CASES["kinds_config"]["layers"]:
        assert any(case["layers"][layer["name"]] is None for case in cases)
    assert {json.dumps(case["user"]) for case in cases} == {
        json.dumps(profile) for profile in generate.PROFILES
    }


def test_assignments_of_kinds_agree_with_the_case_file() -> None:
    assigner = Assigner(
        config_reader.parse(json.dumps(CASES["kinds_config"]).encode(), "cases", FILMS)
    )
    for case in CASES["kinds_assignments"]:
        decision = assigner.assign(
            case["user_id"],
            now_ms=case["now_ms"],
            surface=case["surface"],
            unit_ids=case["unit_ids"],
            user=case["user"],
        )
        got = dict.fromkeys(case["layers"]) | {
            a.layer: {"experiment": a.experiment, "arm": a.arm, "overridden": a.overridden}
            for a in decision.assignments
        }
        assert got == case["layers"], case


def test_a_client_that_follows_the_contract_alone_gets_the_same_assignments_of_kinds() -> None:
    for case in CASES["kinds_assignments"]:
        ids = {"user": case["user_id"]} | case["unit_ids"]
        for layer in CASES["kinds_config"]["layers"]:
            mine = layer | {"experiments": [e for e in layer["experiments"] if _open(e, case)]}
            expected = case["layers"][layer["name"]]
            assert _contract(mine, ids) == expected, (case, layer["name"])


def _open(experiment: dict[str, Any], request: dict[str, Any]) -> bool:
    now = datetime.fromtimestamp(request["now_ms"] / 1000, UTC)
    if "start" in experiment and now < datetime.fromisoformat(experiment["start"]):
        return False
    if "stop" in experiment and now >= datetime.fromisoformat(experiment["stop"]):
        return False
    where = experiment.get("where", {})
    asked = [(request["surface"] or None, where.get("surface", {}))]
    for source in ("context", "user"):
        asked += [(request[source].get(k), tests) for k, tests in where.get(source, {}).items()]
    for value, tests in asked:
        for test, operand in tests.items():
            if value is None:
                return False
            held = {
                "in": lambda v, o: v in o,
                "not_in": lambda v, o: v not in o,
                "equals": lambda v, o: v == o,
                "not_equals": lambda v, o: v != o,
                "below": lambda v, o: v < o,
                "at_most": lambda v, o: v <= o,
                "above": lambda v, o: v > o,
                "at_least": lambda v, o: v >= o,
            }[test](value, operand)
            if not held:
                return False
    return True


def _contract(layer: dict[str, Any], ids: dict[str, str]) -> dict[str, Any] | None:
    """The docstring of config.py, word by word, from the JSON alone."""
    experiments = [e for e in layer["experiments"] if e["enabled"]]
    for e in experiments:
        if arm := e.get("allow_list", {}).get(ids.get(e["unit"], "")):
            (mine,) = (a for a in e["arms"] if a["name"] == arm)
            return _given(e, mine, listed=True)
    for e in experiments:
        unit = ids.get(e["unit"], "")
        bucket = xxhash.xxh3_64_intdigest(f"{layer['salt']}:{unit}".encode()) % 10_000
        if not unit or not e["buckets"][0] <= bucket < e["buckets"][1]:
            continue
        h = xxhash.xxh3_64_intdigest(f"{e['salt']}:{unit}".encode())
        enrolment, below = (h >> 32) % 10_000, 0
        percent = e["ramp"]["steps"][0] if "ramp" in e else e.get("traffic")
        if "interleave" in e:
            if enrolment < percent * 100:
                return {"experiment": e["name"], "arm": "interleaved", "overridden": False}
            return None
        for arm in e["arms"]:
            below += round(arm["weight"] * 100)
            if h % 10_000 < below:
                if enrolment < arm.get("traffic", percent) * 100:
                    return _given(e, arm, listed=False)
                return None
    return None


def _given(experiment: dict[str, Any], arm: dict[str, Any], listed: bool) -> dict[str, Any]:
    """The arm of a unit, or control in place of a stopped one."""
    names = [a["name"] for a in experiment["arms"]]
    stopped = arm.get("stopped", False)
    instead = "control" if "control" in names else names[0]
    name = instead if stopped else arm["name"]
    return {"experiment": experiment["name"], "arm": name, "overridden": listed or stopped}
