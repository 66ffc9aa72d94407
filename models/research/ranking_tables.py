"""The tables of `models/research/bench_ranking.py`: models, their settings and the data.

What is tried of each model is in `models/research/ranking_settings.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ONE_HOT = "scikit-learn"  # in place of a network's name
ORACLE = "Oracle"


@dataclass(frozen=True)
class Entry:
    """One row of a table of results; entries of the same `searched` share one search."""

    label: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    searched: str = ""  # label of the entry whose search is used; empty: its own
    family: str = ""
    against: str = ""  # label that an entry of a family is compared with; empty: the family's first


BASELINES = (
    Entry("LR", "logistic_regression"),
    Entry("LR (scikit-learn)", ONE_HOT),
    Entry("FM", "fm"),
    Entry("DeepFM", "deepfm"),
    Entry("DCN-V2", "dcn_v2"),
    Entry("MMoE", "mmoe"),
    Entry("DNN", "dnn"),
    Entry("DIN", "din"),
)
OURS = (
    Entry("MaskNet", "masknet"),
    Entry("MC-MLCC", "mlcc"),
    Entry("INFNet", "infnet"),
)
REFERENCES = ("DeepFM", "DCN-V2", "LR", "MMoE")  # what our models are compared with


Switches = dict[str, dict[str, Any]]


def _variants(
    family: str,
    model: str,
    variants: Switches,
    base: dict[str, Any] | None = None,
    against: str = "",
) -> tuple[Entry, ...]:
    """Entries of a family by the end of their labels; `base` are settings of them all."""
    return tuple(
        Entry(f"{family} {name}", model, {**(base or {}), **settings}, family, family, against)
        for name, settings in variants.items()
    )


# The paper's MaskNet has both layer norms, whatever the search has chosen for the embeddings.
_NORMED = {"emb_norm": "field"}
_MASKNET_LESS: Switches = {
    "without mask": {"masked": False},
    "without LN": {"emb_norm": "off", "hidden_norm": False},
    "without FFN": {"feed_forward": False},
}
ABLATIONS = (
    *_variants(
        "MaskNet", "masknet",
        {"full": {}, **_MASKNET_LESS, "without embedding LN": {"emb_norm": "off"},
         "serial": {"variant": "serial"}},
        _NORMED,
    ),
    *_variants(
        "MaskNet", "masknet", {f"serial {name}": less for name, less in _MASKNET_LESS.items()},
        _NORMED | {"variant": "serial"}, "MaskNet serial",
    ),
    *_variants(
        "MC-MLCC", "mlcc",
        {**{f"S={s}": {"channels": s, "channel_width": 16} for s in (1, 2, 3, 4)},
         "S=1 E=64": {"channels": 1, "channel_width": 64},
         "S=4 E=4": {"channels": 4, "channel_width": 4}},
    ),
    *_variants(
        "INFNet", "infnet",
        {"full": {}, "without task tokens": {"task_tokens": False},
         "without PGU": {"gated": False}, "without cross attention": {"attention": "mean"},
         "literal": {"residual": False}, "with field vectors": {"field_tokens": "embedding"}},
    ),
)  # fmt: skip

# Section 4.9 gives these for the serial form too; here only the form that the tables show.
MASKNET_SIZES = _variants(
    "MaskNet",
    "masknet",
    {
        "full": {},
        **{f"r={r}": {"reduction": float(r)} for r in (2, 3, 4, 5)},
        **{f"blocks={n}": {"blocks": n} for n in (1, 5, 7, 9)},
        **{f"k={k}": {"width": k} for k in (10, 20, 30, 50, 80)},
    },
    _NORMED,
)


@dataclass(frozen=True)
class Benchmark:
    """Models compared with each other on one split of one data set."""

    data: str
    protocol: str
    entries: tuple[Entry, ...]
    searched_in: str = ""  # table whose searches are used; empty: its own
    several_seeds: bool = False  # of no use with one

    def references(self, entry: Entry) -> tuple[str, ...]:
        """Labels that an entry is compared with: of a family, its first."""
        if entry.against:
            return (entry.against,)
        if entry.family:
            return (next(e.label for e in self.entries if e.family == entry.family),)
        return tuple(r for r in (REFERENCES if entry in OURS else ("DCN-V2",)) if r != entry.label)


BENCHMARKS = {
    "ml-1m-time-split": Benchmark(
        "ml-1m",
        "rating >= 3 (click) and, where known, >= 4 (like); split by time 72/8/20",
        (*BASELINES, *OURS),
    ),
    "simulator-ranking": Benchmark(
        "simulator",
        "impressions with click, like, long view; split by time 72/8/20",
        (*BASELINES, *OURS),
    ),
    "simulator-ablations": Benchmark(
        "simulator",
        "as simulator-ranking, the settings found there for the full model",
        ABLATIONS,
        "simulator-ranking",
    ),
    # The paper's differences here are of the size of .0005: one seed says nothing about them, so
    # the small run of `make bench-models`, which has one, is spared their minutes.
    "simulator-masknet-sizes": Benchmark(
        "simulator",
        "as simulator-ranking, the settings found there; one size of the full MaskNet changed, "
        "which has r=1, 3 blocks and k=16 numbers per embedding",
        MASKNET_SIZES,
        "simulator-ranking",
        several_seeds=True,
    ),
}
