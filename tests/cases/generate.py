"""Writes tests/cases/assignment.json: `python -m tests.cases.generate`.

The cases pin the contract in services/experiments/declare/config.py for clients in any language.
Writing them anew is right only when cases are added: an existing case that changes moves real
users.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.experiments.assign.assignment import Assigner, Decision, xxh3_64
from services.experiments.declare import config_reader
from tests.domains import FILMS

FILE = Path(__file__).with_name("assignment.json")

# Every default is written out, so that a client needs this section and nothing else.
CONFIG: dict[str, Any] = {
    "version": 1,
    "layers": [
        {
            "name": "value",
            "salt": "value",
            "parameters": ["rerank.like_weight", "rerank.diversity"],
            "experiments": [
                {
                    "name": "like_weight",
                    "salt": "like_weight",
                    "unit": "user",
                    "buckets": [0, 6000],
                    "enabled": True,
                    "traffic": 100,
                    "arms": [
                        {"name": "control", "weight": 50, "traffic": 100},
                        {"name": "treatment", "weight": 50, "traffic": 100},
                    ],
                    "allow_list": {"42": "treatment", "née": "control"},
                },
                {
                    "name": "thirds",
                    "salt": "thirds-2",
                    "unit": "user",
                    "buckets": [6000, 9000],
                    "enabled": True,
                    "traffic": 50,
                    "arms": [
                        {"name": "a", "weight": 33.33, "traffic": 50},
                        {"name": "b", "weight": 33.33, "traffic": 12.5},
                        {"name": "c", "weight": 33.34, "traffic": 100},
                        {"name": "by_invitation", "weight": 0, "traffic": 100},
                    ],
                    "allow_list": {"invited": "by_invitation"},
                },
                {
                    "name": "paused",
                    "salt": "paused",
                    "unit": "user",
                    "buckets": [9000, 9500],
                    "enabled": False,
                    "traffic": 100,
                    "arms": [{"name": "all", "weight": 100, "traffic": 100}],
                    "allow_list": {"7": "all"},
                },
            ],
        },
        {
            "name": "retrieval",
            "salt": "retrieval.layer",
            "parameters": ["retrieval.num_candidates"],
            "experiments": [
                {
                    "name": "depth",
                    "salt": "depth",
                    "unit": "session",
                    "buckets": [0, 10000],
                    "enabled": True,
                    "traffic": 80,
                    "arms": [
                        {"name": "shallow", "weight": 25, "traffic": 80},
                        {"name": "deep", "weight": 75, "traffic": 80},
                    ],
                    "allow_list": {},
                },
            ],
        },
    ],
}

# The same with a holdout, instants and conditions. Everything that is not written out is absent.
OPEN_CONFIG: dict[str, Any] = {
    "version": 1,
    "holdout": {"percent": 12.5, "salt": "holdout-1"},
    "layers": [
        {
            "name": "seasons",
            "salt": "seasons",
            "parameters": ["rerank.diversity"],
            "experiments": [
                {
                    "name": "winter",  # starts at the instant that autumn, below, stops
                    "salt": "winter",
                    "unit": "user",
                    "buckets": [0, 10000],
                    "enabled": True,
                    "start": "2026-12-01T10:00:00+01:00",
                    "stop": "2026-12-24T00:00:00.500Z",
                    "traffic": 60,
                    "arms": [
                        {"name": "c", "weight": 30, "traffic": 60},
                        {"name": "d", "weight": 70, "traffic": 60},
                    ],
                    "allow_list": {"42": "d", "née": "c"},
                },
                {
                    "name": "autumn",
                    "salt": "autumn",
                    "unit": "user",
                    "buckets": [2000, 10000],
                    "enabled": True,
                    "stop": "2026-12-01T09:00:00Z",
                    "traffic": 100,
                    "arms": [
                        {"name": "a", "weight": 50, "traffic": 100},
                        {"name": "b", "weight": 50, "traffic": 100},
                    ],
                    "allow_list": {"42": "a"},
                },
            ],
        },
        {
            "name": "places",
            "salt": "places",
            "parameters": ["rerank.like_weight"],
            "experiments": [
                {
                    "name": "detail_only",
                    "salt": "detail_only",
                    "unit": "user",
                    "buckets": [0, 5000],
                    "enabled": True,
                    "where": {"surface": {"in": ["detail", "basket"]}},
                    "traffic": 100,
                    "arms": [
                        {"name": "off", "weight": 50, "traffic": 100},
                        {"name": "on", "weight": 50, "traffic": 100},
                    ],
                    "allow_list": {"7": "on"},
                },
                {
                    "name": "evening",
                    "salt": "evening",
                    "unit": "user",
                    "buckets": [5000, 10000],
                    "enabled": True,
                    "where": {
                        "surface": {"not_in": ["basket"]},
                        "context": {
                            "hour": {"at_least": 18, "below": 22.5},
                            "country": {"not_in": [1, 49]},
                        },
                    },
                    "traffic": 100,
                    "arms": [{"name": "late", "weight": 100, "traffic": 100}],
                    "allow_list": {},
                },
            ],
        },
        {
            "name": "visits",
            "salt": "visits",
            "parameters": ["retrieval.num_candidates"],
            "experiments": [
                {
                    "name": "depth_now",
                    "salt": "depth_now",
                    "unit": "session",
                    "buckets": [0, 10000],
                    "enabled": True,
                    "where": {
                        "context": {
                            "mobile": {"equals": 1},
                            "hour": {"not_equals": 3, "above": -1, "at_most": 24},
                            "country": {"in": [0, 1, 33]},
                        },
                    },
                    "traffic": 100,
                    "arms": [
                        {"name": "shallow", "weight": 25, "traffic": 100},
                        {"name": "deep", "weight": 75, "traffic": 100},
                    ],
                    "allow_list": {},
                },
            ],
        },
    ],
}
# Declared units, conditions on the user, stopped arms, ramps and interleaving. What is not written
# out is absent, but for `traffic`: an experiment with a ramp has that of its first step.
KINDS_CONFIG: dict[str, Any] = {
    "version": 1,
    "units": ["household", "device"],
    "layers": [
        {
            "name": "homes",
            "salt": "homes",
            "parameters": ["rerank.like_weight"],
            "experiments": [
                {
                    "name": "by_household",
                    "salt": "by_household",
                    "unit": "household",
                    "buckets": [0, 10000],
                    "enabled": True,
                    "ramp": {"steps": [62.5, 100], "hold_s": 3600, "min_units": 100},
                    "arms": [
                        {"name": "first", "weight": 30, "stopped": False},
                        {"name": "bad", "weight": 40, "stopped": True},
                        {"name": "control", "weight": 30, "stopped": False},
                    ],
                    "allow_list": {"h-7": "bad", "h-8": "first"},
                },
            ],
        },
        {
            "name": "lists",
            "salt": "lists",
            "parameters": ["rerank.diversity"],
            "experiments": [
                {
                    "name": "interleaves",
                    "salt": "interleaves",
                    "unit": "user",
                    "buckets": [0, 8000],
                    "enabled": True,
                    "interleave": "team_draft",
                    "start": "1970-01-01T00:00:00Z",  # no two may interleave at the same time
                    "traffic": 70,
                    "arms": [{"name": "plain"}, {"name": "mixed"}],
                },
                {
                    "name": "regulars",
                    "salt": "regulars",
                    "unit": "user",
                    "buckets": [8000, 10000],
                    "enabled": True,
                    "where": {
                        "surface": {"in": ["home"]},
                        "user": {"click": {"at_least": 10}, "like": {"not_in": [3, 4]}},
                    },
                    "traffic": 100,
                    "arms": [
                        {"name": "a", "weight": 50, "stopped": False},
                        {"name": "b", "weight": 50, "stopped": True},
                    ],
                    "allow_list": {},
                },
            ],
        },
        {
            "name": "screens",
            "salt": "screens",
            "parameters": ["retrieval.num_candidates"],
            "experiments": [
                {
                    "name": "by_device",
                    "salt": "by_device",
                    "unit": "device",
                    "buckets": [0, 5000],
                    "enabled": True,
                    "interleave": "team_draft",
                    "stop": "1970-01-01T00:00:00Z",
                    "ramp": {"steps": [50], "hold_s": 60, "min_units": 0},
                    "arms": [{"name": "near", "parameters": {}}, {"name": "far"}],
                },
                {
                    "name": "after",
                    "salt": "after",
                    "unit": "device",
                    "buckets": [2500, 7500],
                    "enabled": True,
                    "start": "1970-01-01T00:00:00Z",
                    "traffic": 100,
                    "arms": [{"name": "all", "weight": 100, "stopped": False}],
                    "allow_list": {"d-4": "all"},
                },
            ],
        },
    ],
}
# The user's counts; empty: the profile is missing.
PROFILES: list[dict[str, float]] = [
    {"impression": 100, "click": 10, "like": 2},
    {"impression": 100, "click": 9, "like": 2},
    {"impression": 100, "click": 2_000_000_000, "like": 0},
    {"impression": 100, "click": 10, "like": 3},
    {},
]
AUTUMN_STOPS_MS = 1_796_115_600_000  # 2026-12-01T09:00:00Z
WINTER_STOPS_MS = 1_798_070_400_500  # 2026-12-24T00:00:00.500Z
REQUESTS: list[tuple[str, dict[str, float], int]] = [  # surface, context, now_ms
    ("home", {}, 0),
    ("detail", {}, AUTUMN_STOPS_MS - 1),
    ("detail", {"hour": 18.0, "country": 33.0, "mobile": 1.0}, AUTUMN_STOPS_MS),
    ("basket", {"hour": 18.0, "country": 0.0, "mobile": 1.0}, WINTER_STOPS_MS - 1),
    ("home", {"hour": 22.5, "country": 33.0, "mobile": 1.0}, WINTER_STOPS_MS),
    ("home", {"hour": 22.25, "country": 49.0, "mobile": 1.0}, AUTUMN_STOPS_MS + 1),
    ("", {"hour": 20.0, "country": 33.0, "mobile": 0.0}, AUTUMN_STOPS_MS),
    ("home", {"hour": 3.0, "country": 1.0, "mobile": 1.0}, AUTUMN_STOPS_MS),
    ("home", {"hour": -1.0, "country": 1.0, "mobile": 1.0}, 0),
    ("home", {"hour": 24.0, "country": 1.0, "mobile": 1.0, "other": 5.0}, 0),
    ("home", {"hour": 24.5, "country": 1.0, "mobile": 1.0}, 0),
    ("home", {"hour": 19.0, "mobile": 1.0}, AUTUMN_STOPS_MS),
]

UNITS = [
    *(str(i) for i in range(120)),
    *(f"user-{i:06d}" for i in range(0, 1_000_000, 12_345)),
    *("née", "invited", "Ωmega", "用户-1", "пользователь", "مستخدم", "👩‍🚀", "e\u0301", "\u00e9"),
    *("a:b", "a b", " ", "\t", "\u0000", "null", "0", "-1", "00042", "42 "),
    *("x" * n for n in (3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 256)),
    "é" * 128,
    "日" * 85,
]
SALTS = ["value", "like_weight", "thirds-2", "retrieval.layer", "depth"]


def build() -> dict[str, Any]:
    """The cases as JSON-ready data."""
    assigner = Assigner(config_reader.parse(json.dumps(CONFIG).encode(), "config", FILMS))
    opened = Assigner(config_reader.parse(json.dumps(OPEN_CONFIG).encode(), "open_config", FILMS))
    kinds = Assigner(config_reader.parse(json.dumps(KINDS_CONFIG).encode(), "kinds_config", FILMS))
    return {
        "about": "The contract is the docstring of services/experiments/declare/config.py. "
        "Hashes are decimal strings, because 64 bits do not fit a JSON number. A client that "
        "knows holdouts, instants and conditions also runs open_config and open_assignments; one "
        "that knows declared units, the user's counts, stopped arms, ramps (at their first step) "
        "and interleaving also runs kinds_config and kinds_assignments.",
        "config": CONFIG,
        "hashes": [_hash_case(SALTS[i % len(SALTS)], unit) for i, unit in enumerate(UNITS)],
        "assignments": [
            *(_assignment_case(assigner, unit, "") for unit in UNITS),
            *(_assignment_case(assigner, "", unit) for unit in UNITS[::3]),
            *(_assignment_case(assigner, unit, f"{unit[:9]}/s") for unit in UNITS[::5]),
        ],
        "open_config": OPEN_CONFIG,
        "open_assignments": [_open_case(opened, i, unit) for i, unit in enumerate(UNITS * 2)],
        "kinds_config": KINDS_CONFIG,
        "kinds_assignments": [_kinds_case(kinds, i, unit) for i, unit in enumerate(UNITS * 2)],
    }


def _hash_case(salt: str, unit: str) -> dict[str, Any]:
    h = xxh3_64(f"{salt}:{unit}")
    return {
        "salt": salt,
        "unit": unit,
        "hash": str(h),
        "bucket": h % 10_000,
        "enrolment_bucket": (h >> 32) % 10_000,
    }


def _assignment_case(assigner: Assigner, user: str, session: str) -> dict[str, Any]:
    decision = assigner.assign(user, session, now_ms=0)
    return {"user_id": user, "session_id": session, "layers": _layers(CONFIG, decision)}


def _layers(config: dict[str, Any], decision: Decision) -> dict[str, Any]:
    expected: dict[str, Any] = {layer["name"]: None for layer in config["layers"]}
    for a in decision.assignments:
        expected[a.layer] = {
            "experiment": a.experiment,
            "arm": a.arm,
            "overridden": a.overridden,
        }
    return expected


def _open_case(assigner: Assigner, i: int, unit: str) -> dict[str, Any]:
    user, session = ("", unit) if i % 20 == 19 else (unit, f"{unit[:9]}/s")
    surface, context, now_ms = REQUESTS[i % len(REQUESTS)]
    decision = assigner.assign(user, session, now_ms=now_ms, surface=surface, context=context)
    case = {
        "user_id": user,
        "session_id": session,
        "surface": surface,
        "context": context,
        "now_ms": now_ms,
        "held_out": decision.held_out,
    }
    return case | {"layers": _layers(OPEN_CONFIG, decision)}


def _kinds_case(assigner: Assigner, i: int, unit: str) -> dict[str, Any]:
    """Ids of 60 households and 90 devices; every seventh request carries no id of a unit."""
    unit_ids = {} if i % 7 == 6 else {"household": f"h-{i % 60}", "device": f"d-{i % 90}"}
    surface, user, now_ms = ("home", "detail")[i % 4 == 3], PROFILES[i % len(PROFILES)], i % 3 - 1
    decision = assigner.assign(unit, now_ms=now_ms, surface=surface, unit_ids=unit_ids, user=user)
    case = {
        "user_id": unit,
        "unit_ids": unit_ids,
        "surface": surface,
        "user": user,
        "now_ms": now_ms,
    }
    return case | {"layers": _layers(KINDS_CONFIG, decision)}


def text() -> str:
    """The file's contents: one case per line, so that a change shows which cases it touches."""
    cases = build()
    parts = [f'"about": {json.dumps(cases["about"])}']
    for config, lists in (
        ("config", ("hashes", "assignments")),
        ("open_config", ("open_assignments",)),
        ("kinds_config", ("kinds_assignments",)),
    ):
        parts.append(f'"{config}": {json.dumps(cases[config], indent=1, ensure_ascii=False)}')
        for name in lists:
            rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases[name])
            parts.append(f'"{name}": [\n{rows}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
