"""What the models were to reach, beside what the saved results say: docs/model_targets.md.

    python -m load_tests.model_targets [--results run/bench/models] [--docs docs]

Every figure is computed from the result files (`models/training/results.py`). A model counts as
above another one when the 95 % interval of their paired difference lies above zero; where the
interval holds zero nothing is shown, whatever the means are. "Within noise" means not worse by more
than NOISE. WHY holds what we know about targets that are not reached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from load_tests.retrieval_tables import RECONSTRUCTED

if TYPE_CHECKING:
    from models.training.results import ModelResult
    from models.training.tables_report import Difference

REACHED, MISSED, NOT_SHOWN, NOT_MEASURED = "reached", "missed", "not shown", "not measured"

# Recall@50 of the specification's prototype on Beauty's user split, and how far off is accepted.
BEAUTY_BAND = {"ComiRec-SA": 0.1080, "MIND": 0.0851, "YouTube-DNN": 0.0941}
BAND = 0.15
SASREC_PUBLISHED = {"recall@10": 0.2392, "ndcg@10": 0.1259}
SASREC_BAND = 0.03
NOISE = 0.01  # of recall: what "within noise" allows
ML_1M_OURS = ("HCN-R", "HCN-R, K=1")  # beside SASRec with sampled softmax
UNIONS = {
    "Union of SASRec (sampled softmax), Markov, HCN-R": "SASRec, Markov and HCN-R",
    "Union of SASRec (sampled softmax), HCN-R (K=1)": "SASRec and HCN-R with K=1",
}
OURS = ("MaskNet", "MC-MLCC", "INFNet")
RANKING_TABLES = ("ml-1m-time-split", "simulator-ranking")

# What is known, or only supposed and then said so, of targets that were not reached.
_INTERESTS = (
    "HCN-R against its own K=1: on Beauty its mean is above on every seed, by less than 2,237 users"
    " with short histories can show. On the simulator, whose users have several, the gain "
    "is there. On ml-1m one interest beats four, for ComiRec-SA as well (models.md): the next film "
    "follows the last ones, and each of four interests learns from a part of the targets. That "
    "last sentence is a supposition."
)
_SHIFT = (
    "DESMIL-R: models with four interests lose little in this shift (ComiRec-SA's own drop is in "
    "models.md), so there is little for sample weights to win back. The world was chosen by EASE's "
    "drop; one in which ComiRec-SA suffers was not looked for."
)
_SSL = (
    "SSL two-tower: validation chooses the epoch here. The specification's prototype, whose epoch "
    "was chosen on test pairs, gained on the tail at 10 and not at 50 either; at one untested "
    "alpha. Other weights of the loss were not searched."
)
_SASREC = (
    "SASRec with the paper's binary loss stopped by validation at step 10,000 of at most 16,000. "
    "Why it stays below the published figures was not found; with sampled softmax it is above."
)
_UNION = (
    "The union: SASRec with sampled softmax alone finds more with 200 candidates (models.md) than "
    "the three sources that share them."
)
_ML_1M = (
    "ml-1m ranking: trained on the newest 60,000 of 719,719 rows with three settings tried per "
    "model, so that the table is made in minutes. That is little for networks, and logistic "
    "regression is best. With all rows it was not run."
)
_NETWORKS = (
    "The simulator: seeds of MaskNet and INFNet differ by more (models.md) than the models do. "
    "INFNet's heads see fields through attention that does not know which field a token is; "
    "vectors per field, wider tokens, more proxies and larger heads did not validate better, with "
    "one seed each."
)
_SMALL = (
    "Ablations: the papers' differences are of the size of .002; three seeds on these rows show "
    "only larger ones."
)
WHY: dict[str, str] = {
    "HCN-R above its own K=1": _INTERESTS,
    "HCN-R above Markov": _INTERESTS,
    "HCN-R above SASRec": _INTERESTS,
    "HCN-R above its own K=1 (ml-1m)": _INTERESTS,
    "DESMIL-R loses less than ComiRec-SA on users of the other kind (simulator)": _SHIFT,
    "SSL two-tower with CFM above its alpha=0 twin on the tail": _SSL,
    "SASRec reproduces recall@10 0.2392 within 3%": _SASREC,
    "SASRec reproduces ndcg@10 0.1259 within 3%": _SASREC,
    "the union of SASRec, Markov and HCN-R finds .75 with 200 candidates": _UNION,
    **{
        f"{model} above {other} ({table})": why
        for table, why in zip(RANKING_TABLES, (_ML_1M, _NETWORKS), strict=True)
        for model in OURS
        for other in ("DeepFM", "DCN-V2", "LR", *(("MMoE",) if model == "INFNet" else ()))
    },
}


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured for it and whether that reaches it."""

    group: str
    target: str
    measured: str
    verdict: str

    @property
    def why(self) -> str:
        """What is known of the cause, if it was measured and not reached."""
        return WHY.get(self.target, "") if self.verdict in (MISSED, NOT_SHOWN) else ""


@dataclass
class Measured:
    """The results by table and model, and the verdicts found so far."""

    results: Sequence[ModelResult]
    found: list[Verdict] = field(default_factory=list)
    group: str = ""

    def get(self, table: str, model: str) -> ModelResult | None:
        """A row's result; None if it was not measured."""
        return next((r for r in self.results if (r.table, r.model) == (table, model)), None)

    def mean(self, table: str, model: str, metric: str) -> float | None:
        """Mean over seeds; None if it was not measured."""
        result = self.get(table, model)
        return None if result is None or metric not in result.metrics else result.mean(metric)

    def say(self, target: str, measured: str, reached: bool | None) -> None:
        """Add a verdict; None: the results it needs are not there."""
        verdict = NOT_MEASURED if reached is None else REACHED if reached else MISSED
        self.found.append(Verdict(self.group, target, measured, verdict))

    def above(
        self, target: str, table: str, model: str, other: str, metric: str, bound: float = 0.0
    ) -> None:
        """A paired comparison: `model` is to be more than `bound` above `other`."""
        from models.training.tables_report import difference

        one, two = self.get(table, model), self.get(table, other)
        gain = None if one is None or two is None else difference(one, two, metric)
        self.found.append(
            Verdict(self.group, target, _difference_text(gain, metric), _above(gain, bound))
        )


def _above(gain: Difference | None, bound: float = 0.0) -> str:
    if gain is None:
        return NOT_MEASURED
    if gain.interval.low > bound:
        return REACHED
    return MISSED if gain.interval.high < bound else NOT_SHOWN


def _difference_text(gain: Difference | None, metric: str) -> str:
    from models.training.tables_report import gain_text

    return "-" if gain is None else f"{metric} {gain_text(gain, named=False)}"


def verdicts(results: Sequence[ModelResult]) -> list[Verdict]:
    """Every target of the specification's models, in the order of the page."""
    measured = Measured(results)
    for part in (_beauty, _shift, _self_supervised, _ml_1m, _epoch, _ranking, _ablations):
        part(measured)
    return measured.found


def _beauty(m: Measured) -> None:
    m.group, table, metric = "Amazon-Beauty, user split", "beauty-user-split", "recall@50"
    for model, level in BEAUTY_BAND.items():
        value = m.mean(table, model, metric)
        low, high = level * (1 - BAND), level * (1 + BAND)
        m.say(
            f"{model}: {metric} from {low:.4f} to {high:.4f}",
            "-" if value is None else f"{value:.4f}",
            None if value is None else low <= value <= high,
        )
    m.above("HCN-R above ComiRec-SA", table, "HCN-R", "ComiRec-SA", metric)
    m.above("HCN-R above its own K=1", table, "HCN-R", "HCN-R, K=1", metric)


def _shift(m: Measured) -> None:
    from models.training.tables_report import drops, gain_text, result_tables

    for world in ("simulator", "simulator-default"):
        m.group = f"Shifted test users, {world}"
        like, unlike = f"{world}-iid", f"{world}-ood"
        target = f"DESMIL-R less than {NOISE} below ComiRec-SA on users of the same kind ({world})"
        m.above(target, like, "DESMIL-R", "ComiRec-SA", "recall@50", -NOISE)
        tables = {t.name: t for t in result_tables([r for r in m.results if r.table in
                                                    (like, unlike)])}  # fmt: skip
        smaller = None
        if len(tables) == 2:
            found = drops(tables[unlike], tables[like])
            smaller = next(
                (g for d in found if d.model == "DESMIL-R" for g in d.smaller
                 if g.reference == "ComiRec-SA"), None,
            )  # fmt: skip
        m.found.append(
            Verdict(
                m.group,
                f"DESMIL-R loses less than ComiRec-SA on users of the other kind ({world})",
                "-" if smaller is None else f"drop smaller by {gain_text(smaller, named=False)}",
                _above(smaller),
            )
        )
        target = f"HCN-R above its own K=1 on users of the same kind ({world})"
        m.above(target, like, "HCN-R", "HCN-R, K=1", "recall@50")


def _self_supervised(m: Measured) -> None:
    m.group, table = "Amazon-Beauty, next item", "beauty-next-item"
    m.above(
        "SSL two-tower with CFM above its alpha=0 twin on the tail",
        table, "SSL, CFM", "SSL, alpha=0", "tail_recall@50",
    )  # fmt: skip


def _ml_1m(m: Measured) -> None:
    m.group, table = "ml-1m, leave-one-out, all items", "ml-1m-leave-one-out"
    for metric, level in SASREC_PUBLISHED.items():
        value = m.mean(table, "SASRec", metric)
        low, high = level * (1 - SASREC_BAND), level * (1 + SASREC_BAND)
        m.say(
            f"SASRec reproduces {metric} {level} within {SASREC_BAND:.0%}",
            "-" if value is None else f"{value:.4f}",
            None if value is None else low <= value <= high,
        )
    sampled = "SASRec, sampled softmax"
    for model in (sampled, *ML_1M_OURS):
        for other in ("SASRec", "Markov"):
            m.above(f"{model} above {other}", table, model, other, "ndcg@10")
    m.above("HCN-R above its own K=1 (ml-1m)", table, "HCN-R", "HCN-R, K=1", "ndcg@10")
    for model, sources in UNIONS.items():
        value = m.mean(table, model, "recall@200")
        m.say(
            f"the union of {sources} finds .75 with 200 candidates",
            "-" if value is None else f"recall@200 {value:.4f}",
            None if value is None else value >= 0.75,
        )


def _epoch(m: Measured) -> None:
    m.group = "40,000 items, a million events"
    value = m.mean("ssl-epoch", "SSL two-tower", "epoch_s")
    m.say(
        "an epoch of the SSL two-tower in under 60 s on two cores",
        "-" if value is None else f"{value:.1f} s",
        None if value is None else value < 60,
    )


def _ranking(m: Measured) -> None:
    for table in RANKING_TABLES:
        m.group = f"Ranking, {table}"
        for model in OURS:
            for other in ("DeepFM", "DCN-V2", "LR", *(("MMoE",) if model == "INFNet" else ())):
                m.above(f"{model} above {other} ({table})", table, model, other, "click auc")


# By the specification the first is better than the second.
ABLATIONS = (
    ("MaskNet full", "MaskNet without mask"),
    ("MaskNet full", "MaskNet without LN"),
    ("MC-MLCC S=2", "MC-MLCC S=1"),
    ("MC-MLCC S=3", "MC-MLCC S=2"),
    ("MC-MLCC S=4", "MC-MLCC S=3"),
    ("MC-MLCC S=4 E=4", "MC-MLCC S=1"),
    ("INFNet full", "INFNet without task tokens"),
    ("INFNet full", "INFNet without PGU"),
    ("INFNet full", "INFNet without cross attention"),
    ("INFNet full", "INFNet literal"),
)


WHY |= {f"{better} above {worse}": _SMALL for better, worse in ABLATIONS}


def _ablations(m: Measured) -> None:
    m.group = "Ablations, simulator-ablations"
    for better, worse in ABLATIONS:
        m.above(f"{better} above {worse}", "simulator-ablations", better, worse, "click auc")


def page(found: Sequence[Verdict], source: str, training: str = "") -> list[str]:
    """The Markdown lines; `training` says what was trained less than intended."""
    counts = {v: sum(f.verdict == v for f in found) for v in
              (REACHED, MISSED, NOT_SHOWN, NOT_MEASURED)}  # fmt: skip
    lines = [
        "# What the models were to reach, and what they did",
        "",
        f"Computed from {source} by `python -m load_tests.model_targets`. Do not edit. "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + ". *reached* for a comparison: the 95 % interval of the paired difference lies above "
        "zero (or above what the target allows); *missed*: below; *not shown*: it holds the bound. "
        "Each is judged by itself: of many comparisons between equals a few in a hundred are "
        f"reached by chance. {training}The tables are in "
        f"[models.md](models.md). HCN-R and DESMIL-R are {RECONSTRUCTED}.",
    ]
    for group in dict.fromkeys(f.group for f in found):
        lines += ["", f"## {group}", "", "| target | measured | verdict |", "| --- | --- | --- |"]
        members = [f for f in found if f.group == group]
        lines += [f"| {f.target} | {f.measured} | {f.verdict} |" for f in members]
        for why in dict.fromkeys(f.why for f in members if f.why):
            lines += ["", why]
    return lines


def shortened(results: Sequence[ModelResult]) -> str:
    """A sentence on models that were trained for a part of their steps; empty if none was."""
    shares = {r.settings["budget"] for r in results if r.settings.get("budget", 1.0) < 1.0}
    if not shares:
        return ""
    parts = ", ".join(f"{share:.0%}" for share in sorted(shares))
    return (
        f"Retrieval models were trained for {parts} of their steps: this run shows that the "
        "benchmarks work, not what the models reach. "
    )


def main(
    results: Annotated[Path, typer.Option(help="folder of the results", exists=True)] = Path(
        "run/bench/models"
    ),
    docs: Annotated[Path, typer.Option(help="where the page is written")] = Path("docs"),
) -> None:
    from load_tests.report import console, print_table
    from models.training.results import load_all

    loaded = load_all(results)
    found = verdicts(loaded)
    docs.mkdir(parents=True, exist_ok=True)
    path = docs / "model_targets.md"
    source = f"{len(loaded)} result files in `{results}`"
    path.write_text("\n".join(page(found, source, shortened(loaded))) + "\n")
    rows = [[f.group, f.target, re.sub(r"\s+", " ", f.measured), f.verdict] for f in found]
    print_table("targets", ["where", "target", "measured", "verdict"], rows)
    console.print(f"written to {path}")


if __name__ == "__main__":
    typer.run(main)
