"""Model cards: one Markdown file per model, what it is and everything that was measured of it.

The sentences on a model's origin stand in `facts.yaml`, once; every figure comes from the result
files. A result belongs to the card of its `family`, or of its model name ("HCN-R, K=1" to HCN-R).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from models.research.comparison import ResultTable, Row, deterministic
from models.research.pages.text import TEMPLATES
from models.training.results import ModelResult, slug


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model is, where it comes from, and what must be said with it."""

    name: str
    what: str
    source: str
    own: bool = False  # one of the six models of the system, as opposed to a baseline
    aliases: tuple[str, ...] = ()
    notice: str = ""
    questions: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def reconstruction(self) -> bool:
        """Whether the equations are not its authors'."""
        return self.name.endswith("-R")


FACTS = TypeAdapter(tuple[Facts, ...]).validate_python(
    yaml.safe_load(Path(__file__).with_name("facts.yaml").read_text())
)


def facts_of(name: str) -> Facts | None:
    """Facts of the model whose name `name` starts with, spelling aside; the longest wins."""
    known = {_plain(spelling): f for f in FACTS for spelling in (f.name, *f.aliases)}
    found = [key for key in known if _plain(name).startswith(key)]
    return known[max(found, key=len)] if found else None


def card_name(result: ModelResult) -> str:
    """Name of the card that a result belongs to."""
    facts = facts_of(result.card)
    return facts.name if facts else result.card


def card_files(results: Sequence[ModelResult]) -> dict[str, str]:
    """File name of each card that the results need."""
    return {name: f"{slug(name)}.md" for name in dict.fromkeys(map(card_name, results))}


def is_own_model(result: ModelResult) -> bool:
    """Whether this is one of the system's six models or a variant of one (its K=1 control too)."""
    facts = facts_of(result.card)
    return facts is not None and facts.own


def write_cards(
    folder: Path, tables: Sequence[ResultTable], source: str, command: str
) -> list[Path]:
    """One file per model of the tables; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    placed = [(t, row) for t in tables for row in t.rows]
    paths = []
    for name, file in card_files([row.result for _, row in placed]).items():
        mine = [(t, row) for t, row in placed if card_name(row.result) == name]
        facts = facts_of(name)
        text = TEMPLATES.get_template("card.md.j2").render(
            name=name,
            source=source,
            command=command,
            facts=facts,
            others=[f for f in reconstructions(mine) if facts is None or f.name != facts.name],
            placed=mine,
            few_seeds=any(
                len(row.result.seeds) < 3 and not deterministic(row.result) for _, row in mine
            ),
            data=", ".join(dict.fromkeys(row.result.data for _, row in mine)),
            json=lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=str),
        )
        paths.append(folder / file)
        paths[-1].write_text(text)
    return paths


def reconstructions(placed: Sequence[tuple[ResultTable, Row]]) -> list[Facts]:
    """The reconstructed models whose results are in these rows: as the model, a part of a union, or
    a reference of a gain."""
    named = set()
    for _, row in placed:
        r = row.result
        named |= {r.model, r.card, str(r.settings.get("source", "")), *r.settings.get("of", ())}
        named |= {gain.reference for gain in row.gains}
    plain = [_plain(name) for name in named]
    return [f for f in FACTS if f.reconstruction and any(_plain(f.name) in name for name in plain)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
