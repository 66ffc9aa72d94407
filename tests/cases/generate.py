"""Writes tests/cases/assignment.json: `python -m tests.cases.generate`.

The cases pin the contract in services/experiments/config.py for clients in any language. Writing
them anew is right only when cases are added: an existing case that changes moves real users.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.experiments import config_reader
from services.experiments.assignment import Assigner, xxh3_64

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
    assigner = Assigner(config_reader.parse(json.dumps(CONFIG).encode(), "config"))
    return {
        "about": "The contract is the docstring of services/experiments/config.py. Hashes are "
        "decimal strings, because 64 bits do not fit a JSON number.",
        "config": CONFIG,
        "hashes": [_hash_case(SALTS[i % len(SALTS)], unit) for i, unit in enumerate(UNITS)],
        "assignments": [
            *(_assignment_case(assigner, unit, "") for unit in UNITS),
            *(_assignment_case(assigner, "", unit) for unit in UNITS[::3]),
            *(_assignment_case(assigner, unit, f"{unit[:9]}/s") for unit in UNITS[::5]),
        ],
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
    names = [layer["name"] for layer in CONFIG["layers"]]
    expected: dict[str, Any] = dict.fromkeys(names)
    for a in assigner.assign(user, session).assignments:
        expected[a.layer] = {
            "experiment": a.experiment,
            "arm": a.arm,
            "overridden": a.overridden,
        }
    return {"user_id": user, "session_id": session, "layers": expected}


def text() -> str:
    """The file's contents: one case per line, so that a change shows which cases it touches."""
    cases = build()
    parts = [f'"about": {json.dumps(cases["about"])}']
    parts.append(f'"config": {json.dumps(cases["config"], indent=1, ensure_ascii=False)}')
    for name in ("hashes", "assignments"):
        rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases[name])
        parts.append(f'"{name}": [\n{rows}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
