"""Model cards: one Markdown file per model, what it is and everything that was measured of it.

The sentences on a model's origin stand here, once; every figure comes from the result files. A
result belongs to the card of its `family`, or of its model name ("HCN-R, K=1" to HCN-R).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.training.results import ModelResult, slug

if TYPE_CHECKING:
    from models.research.pages.models_page import ResultTable, Row


@dataclass(frozen=True)
class Facts:
    """What a model is, where it comes from, and what must be said with it."""

    name: str
    what: str
    source: str
    own: bool = False  # one of the six models of the system, as opposed to a baseline
    notice: str = ""
    questions: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


_COMIREC = (
    'arXiv 2005.09347 ("Controllable Multi-Interest Framework for Recommendation", KDD\'20) '
    "and its official code"
)
FACTS = (
    Facts(
        "HCN-R",
        "Hierarchical multi-interest retrieval: interest centres refined in layers, from a long "
        "and a short history that a co-interest network joins.",
        'reconstruction; arXiv 2210.10547 ("Hierarchical Multi-Interest Co-Network For '
        'Coarse-Grained Ranking")',
        own=True,
        notice="HCN-R is reconstructed from the paper's abstract: the equations are not the "
        "authors', and no published HCN number is reproduced or may be claimed.",
        questions=(
            "centre update: softmax axis, query initialisation, residual, L, K",
            "co-interest network: co-attention or gate, where the profile enters",
            "definition and lengths of long and short sequences",
            "loss, negatives, any similarity penalty",
            "data sets, split, metrics, result and ablation tables",
            "K at serving; what the second version of the paper changed",
        ),
        limits=("It does not by itself make interests less redundant: see the interest cosine.",),
    ),
    Facts(
        "DESMIL-R",
        "Multi-interest retrieval trained with sample weights that make the interests independent "
        "of each other (random-feature estimate of HSIC), against shifted interests.",
        "reconstruction; arXiv 2207.07910 and 2304.05615, weight learner after arXiv 2104.07876",
        own=True,
        notice="DESMIL-R is reconstructed from the abstracts of two papers plus the published "
        "StableNet weight learner: the equations are not the authors', and no published DESMIL "
        "number is reproduced or may be claimed.",
        questions=(
            "base extractor, K, d",
            "number of random features, per vector or per dimension, kernel width",
            "weight constraint, inner steps and rate, memory",
            "whether the dependence loss also trains the network",
            "public data, out-of-distribution construction, metrics, tables",
            "industrial lift",
        ),
        limits=("Equal to ComiRec-SA at serving; gains can only come from shifted interests.",),
    ),
    Facts(
        "SSL two-tower",
        "Two-tower retrieval with an auxiliary contrastive loss over two masked views of an item; "
        "correlated features are masked together.",
        'arXiv 2007.12865 ("Self-supervised Learning for Large-scale Item Recommendations", '
        "CIKM'21)",
        own=True,
        notice="Equations and tables are published; five gaps are closed by decisions of this "
        "project. The published data are private or very large: only directions are comparable.",
    ),
    Facts(
        "INFNet",
        "Multi-task ranking where categorical, sequence and task tokens exchange information "
        "through a few proxies, by cross attention and proxy gated units.",
        "arXiv 2508.11565v1",
        own=True,
        notice="Splits, depth and several shapes are not published; they are decisions of this "
        "project, and published figures are not comparable.",
    ),
    Facts(
        "MaskNet",
        "Ranking with masks, computed from the instance's embeddings, that multiply embeddings and "
        "hidden layers; serial or parallel blocks.",
        "arXiv 2102.07619 (DLP-KDD'21); block width and regularisation as in FuxiCTR",
        own=True,
        limits=("Against a tuned DNN the public leaderboard shows gains near zero.",),
    ),
    Facts(
        "MC-MLCC",
        "Ranking where a micro-network generated from a global compression crosses the fields, in "
        "parallel channels.",
        "arXiv 2602.12041 and the official code",
        own=True,
        notice="The equations follow the official code, not the paper's text.",
    ),
    Facts("ComiRec-SA", "Multi-interest retrieval by self-attention.", _COMIREC),
    Facts("ComiRec-DR", "Multi-interest retrieval by dynamic routing.", _COMIREC),
    Facts("MIND", "Multi-interest retrieval by capsules.", "arXiv 1904.08030 (CIKM'19)"),
    Facts(
        "YouTube DNN",
        "A single user vector from the mean of the history.",
        "RecSys'16; with L2 norm and temperature where the settings say so",
    ),
    Facts("SASRec", "Self-attention over the sequence.", "arXiv 1808.09781 (ICDM'18)"),
    Facts("Markov", "Counts of the item that follows the previous one.", "baseline by counting"),
    Facts(
        "Popularity", "Counts of training events, the same for everyone.", "baseline by counting"
    ),
    Facts("ItemKNN", "Items that the same users chose, by cosine.", "TOIS'04"),
    Facts("EASE", "Linear item-to-item model in closed form.", "arXiv 1905.03375 (WWW'19)"),
    Facts("Logistic regression", "Linear model of the fields.", "baseline"),
    Facts("FM", "Factorisation machine.", "ICDM'10"),
    Facts("DeepFM", "Factorisation machine beside an MLP.", "arXiv 1703.04247 (IJCAI'17)"),
    Facts("DCN-V2", "Matrix cross layers beside an MLP.", "arXiv 2008.13535 (WWW'21)"),
    Facts("DIN", "Attention of the candidate over the history.", "arXiv 1706.06978 (KDD'18)"),
    Facts("DNN", "MLP over the embeddings.", "baseline"),
    Facts("MMoE", "Mixture of experts with a gate per task.", "KDD'18"),
)
_ALIASES = {"mlcc": "MC-MLCC", "lr": "Logistic regression", "mostpopular": "Popularity"}


def facts_of(name: str) -> Facts | None:
    """Facts of the model whose name `name` starts with, spelling aside; the longest wins."""
    plain = _plain(name)
    known = {_plain(f.name): f for f in FACTS}
    known |= {alias: known[_plain(target)] for alias, target in _ALIASES.items()}
    found = [key for key in known if plain.startswith(key)]
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
        path = folder / file
        path.write_text("\n".join(card(name, mine, source, command)) + "\n")
        paths.append(path)
    return paths


def card(
    name: str, placed: Sequence[tuple[ResultTable, Row]], source: str, command: str
) -> list[str]:
    """The Markdown lines of one card."""
    facts = facts_of(name)
    lines = [
        f"# {name}",
        "",
        f"Generated from {source} by `{command}`. Do not edit: run the command again.",
    ]
    if facts is not None:
        if facts.notice:
            lines += ["", f"> **{'Reconstruction' if name.endswith('-R') else 'Notice'}.** "
                      f"{facts.notice}"]  # fmt: skip
        lines += ["", facts.what, "", f"Source: {facts.source}."]
    for other in reconstructions(placed):
        if facts is None or other.name != facts.name:
            lines += ["", f"> **Reconstruction.** This card holds results of {other.name}, too. "
                      f"{other.notice}"]  # fmt: skip
    for table, row in placed:
        lines += ["", *_measured(table, row)]
    lines += ["", "## Limitations", ""]
    lines += [f"- {limit}" for limit in (facts.limits if facts else ())]
    data = ", ".join(dict.fromkeys(row.result.data for _, row in placed))
    lines.append(
        f"- Offline figures of logged or simulated data ({data}); they say nothing of an online "
        "effect."
    )
    from models.research.pages.models_page import deterministic

    if any(len(row.result.seeds) < 3 and not deterministic(row.result) for _, row in placed):
        lines.append(
            "- Where fewer than three seeds are given, the spread over seeds is not known."
        )
    if facts is not None and facts.questions:
        lines += ["", "## Open questions of the reconstruction", ""]
        lines += [f"- {question}" for question in facts.questions]
    return lines


def reconstructions(placed: Sequence[tuple[ResultTable, Row]]) -> list[Facts]:
    """The reconstructed models whose results are in these rows: as the model, a part of a union, or
    a reference of a gain."""
    named = set()
    for _, row in placed:
        r = row.result
        named |= {r.model, r.card, str(r.settings.get("source", "")), *r.settings.get("of", ())}
        named |= {gain.reference for gain in row.gains}
    plain = [_plain(name) for name in named]
    return [
        f for f in FACTS if f.name.endswith("-R") and any(_plain(f.name) in name for name in plain)
    ]


def _measured(table: ResultTable, row: Row) -> list[str]:
    """What was measured of one model in one table, and how."""
    from models.research.pages.models_page import deterministic, gain_text, metric_text, quantity

    r = row.result
    lines = [
        f"## {r.model} on {table.name}",
        "",
        f"- Data: {r.data}",
        f"- Protocol: {r.protocol}",
        "- Seeds: none, no seed changes this model" if deterministic(r)
        else f"- Seed: {r.seeds[0]}; the spread over seeds is not known" if len(r.seeds) == 1
        else f"- Seeds: {', '.join(map(str, r.seeds))}; metrics are mean ± standard deviation "
        "over them",
    ]  # fmt: skip
    if row.interval is not None:
        i = row.interval
        lines.append(
            f"- {table.primary}: {i.mean:.4f}, 95 % interval [{i.low:.4f}, {i.high:.4f}] over "
            f"{i.units:,} {r.unit}s"
        )
    for gain in row.gains:
        lines.append(f"- Gain in {table.primary}: {gain_text(gain, named=True)}")
    seconds = ", ".join(quantity(s) for s in r.train_seconds) or "-"
    lines += [
        f"- Parameters: {r.parameters:,}, without embedding tables {r.dense_parameters:,}",
        f"- FLOPs per row: {quantity(r.flops_per_row)}; latency: {quantity(r.latency_ms)} ms",
        f"- Training: {seconds} s on {r.machine}",
        f"- Command: `{r.command}`",
        f"- Date: {r.created}",
    ]
    if r.notes:
        lines.append(f"- Notes: {r.notes}")
    lines += ["", "| metric | value |", "| --- | ---: |"]
    lines += [f"| {m} | {metric_text(r, m)} |" for m in r.metrics]
    lines += ["", "Settings:", "", "```json"]
    lines += [json.dumps(r.settings, indent=1, ensure_ascii=False, default=str), "```"]
    return lines


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
