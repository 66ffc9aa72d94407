"""The tables of `load_tests/bench_models_retrieval.py`: which models, settings, seeds and budgets.

Settings were chosen on validation cases, never on test cases. Budgets are steps of one batch; what
a row took is in its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SEEDS = (19, 20, 21)
FIVE_SEEDS = (19, 20, 21, 22, 23)
COUNTING = frozenset({"popularity", "markov", "item_knn", "ease"})
RECONSTRUCTED = "reconstructed from the paper's abstract"


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a model, its settings and its training, without the seed.

    `source` is a model of the registry, one of COUNTING, or "union" of the rows named in
    `settings["of"]`. `training` are the fields of SequenceTraining (PairTraining for pairs).
    """

    model: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS[:1]
    family: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Table:
    """Models compared with each other on the same cases.

    `kind` "shift" trains once and measures on two sets of cases, which fill two tables.
    """

    data: Literal["amazon-beauty", "ml-1m", "simulator"]
    protocol: Literal["user-split", "leave-one-out", "last-fifth", "next-item"]
    recipes: tuple[Recipe, ...]
    reference: str
    primary: str = "recall@50"  # metric that rows are sorted by and differences are of
    unit: str = "test user"
    kind: Literal["sequences", "pairs", "shift", "epoch-time"] = "sequences"


_COUNTING = (
    Recipe("Popularity", "popularity"),
    Recipe("Markov", "markov"),
    Recipe("ItemKNN", "item_knn"),
    Recipe("EASE", "ease"),
)

# Protocol A as in the specification's section 9: at most 5,000 batches of 128 users.
_A = {"history": 20}
_A_HCN = _A | {"short_history": 5}
_COSINE = {"normalise": True, "temperature": 0.1}

BEAUTY_USER_SPLIT = Table(
    "amazon-beauty",
    "user-split",
    (
        *_COUNTING,
        Recipe("YouTube-DNN", "youtube_dnn", _A),
        Recipe("YouTube-DNN, cosine", "youtube_dnn", _A | _COSINE, family="YouTube-DNN"),
        Recipe("MIND", "mind", _A),
        Recipe("ComiRec-SA", "comirec_sa", _A, seeds=SEEDS),
        Recipe("HCN-R", "hcn_r", _A_HCN, seeds=SEEDS, notes=RECONSTRUCTED),
        Recipe("ComiRec-SA, K=1", "comirec_sa", _A | {"interests": 1}, seeds=SEEDS,
               family="ComiRec-SA"),
        Recipe("HCN-R, K=1", "hcn_r", _A_HCN | {"interests": 1}, seeds=SEEDS, family="HCN-R",
               notes=RECONSTRUCTED),
        Recipe("ComiRec-SA, cosine", "comirec_sa", _A | _COSINE, seeds=SEEDS, family="ComiRec-SA"),
        Recipe("HCN-R, cosine", "hcn_r", _A_HCN | _COSINE, seeds=SEEDS, family="HCN-R",
               notes=RECONSTRUCTED),
        Recipe("HCN-R, K=1, cosine", "hcn_r", _A_HCN | _COSINE | {"interests": 1}, seeds=SEEDS,
               family="HCN-R", notes=RECONSTRUCTED),
        Recipe("DESMIL-R", "desmil_r", _A | {"start_epoch": 0}, notes=RECONSTRUCTED),
        Recipe("ComiRec-DR", "comirec_dr", _A | {"dr_init_std": 0.125}, {"learning_rate": 5e-3}),
        Recipe("SASRec", "sasrec", _A | {"width": 64, "loss": "sampled"}),
    ),
    reference="ComiRec-SA",
)  # fmt: skip

# Leave-one-out: every training event is a target; SASRec learns from all steps of a user at once.
_STEPS = {"validate_every": 500, "valid_metric": "ndcg@10", "patience": 4}
_SEQUENCES = _STEPS | {"sampling": "sequences", "batch_size": 64, "random_windows": True}
_EVENTS = _STEPS | {"sampling": "events", "min_history": 1, "batch_size": 256}
# Cosine scores: after 500 steps HCN-R had validation NDCG@10 of .087 with them, .048 without.
_ML_EVENTS = _EVENTS | {"steps": 8000, "learning_rate": 2e-3}
_ML = {"history": 20, "negatives": 256, "normalise": True, "temperature": 0.07}
_ML_SAS = {"width": 64, "history": 200, "negatives": 256}

ML_1M_LEAVE_ONE_OUT = Table(
    "ml-1m",
    "leave-one-out",
    (
        *_COUNTING,
        Recipe("SASRec", "sasrec", _ML_SAS | {"loss": "sampled"}, _SEQUENCES | {"steps": 7000},
               notes="sampled softmax with logQ in place of the paper's binary loss"),
        Recipe("SASRec, binary loss", "sasrec", _ML_SAS | {"loss": "binary"},
               _SEQUENCES | {"steps": 8000}, family="SASRec", notes="the paper's loss"),
        Recipe("HCN-R", "hcn_r", _ML | {"short_history": 5}, _ML_EVENTS,
               notes=RECONSTRUCTED),
        Recipe("HCN-R, K=1", "hcn_r", _ML | {"short_history": 5, "interests": 1},
               _ML_EVENTS, family="HCN-R", notes=RECONSTRUCTED),
        Recipe("ComiRec-SA", "comirec_sa", _ML, _ML_EVENTS),
        Recipe("ComiRec-SA, K=1", "comirec_sa", _ML | {"interests": 1}, _ML_EVENTS,
               family="ComiRec-SA"),
        Recipe("YouTube-DNN", "youtube_dnn", _ML, _ML_EVENTS),
        Recipe("Union of SASRec, Markov, HCN-R", "union",
               {"of": ["SASRec", "Markov", "HCN-R"]},
               notes="200 candidates in all, dealt in turn"),
    ),
    reference="SASRec",
    primary="ndcg@10",
)  # fmt: skip

BEAUTY_LEAVE_ONE_OUT = Table(
    "amazon-beauty",
    "leave-one-out",
    (
        *_COUNTING,
        Recipe("SASRec", "sasrec", {"width": 64, "history": 20, "loss": "sampled"},
               _STEPS | {"sampling": "sequences", "batch_size": 128, "steps": 5000}),
        Recipe("HCN-R", "hcn_r", _A_HCN, _EVENTS | {"steps": 5000}, notes=RECONSTRUCTED),
        Recipe("HCN-R, K=1", "hcn_r", _A_HCN | {"interests": 1}, _EVENTS | {"steps": 5000},
               family="HCN-R", notes=RECONSTRUCTED),
        Recipe("ComiRec-SA", "comirec_sa", _A, _EVENTS | {"steps": 5000}),
    ),
    reference="SASRec",
    primary="ndcg@10",
)  # fmt: skip

BEAUTY_NEXT_ITEM = Table(
    "amazon-beauty",
    "next-item",
    (
        Recipe("SSL, alpha=0", "ssl_item_to_item", {"alpha": 0.0}, seeds=SEEDS),
        Recipe("SSL, CFM", "ssl_item_to_item", {"alpha": 0.3}, seeds=SEEDS),
        Recipe("SSL, spread-out", "ssl_item_to_item", {"augmentation": "spread_out"}),
        Recipe("SSL, RFM", "ssl_item_to_item", {"augmentation": "rfm"}),
        Recipe("SSL, RFM no complement", "ssl_item_to_item", {"augmentation": "rfm_no_complement"}),
        Recipe("SSL, CFM no dropout", "ssl_item_to_item", {"value_dropout": 0.0}),
        Recipe("SSL, dropout only", "ssl_item_to_item", {"augmentation": "dropout"}),
    ),
    reference="SSL, alpha=0",
    primary="tail_recall@50",
    unit="test pair",
    kind="pairs",
)

# Training users whose interests come in related pairs; test users of the same kind (-iid) and of
# the opposite kind (-ood). Specification section 7.8.
_SHIFT = {"steps": 2500, "validate_every": 250}
SIMULATOR = Table(
    "simulator",
    "user-split",
    (
        Recipe("ComiRec-SA", "comirec_sa", _A | {"negatives": 256}, _SHIFT, FIVE_SEEDS),
        Recipe("DESMIL-R", "desmil_r", _A | {"negatives": 256, "start_epoch": 0}, _SHIFT,
               FIVE_SEEDS, notes=RECONSTRUCTED),
        Recipe("ComiRec-SA, K=1", "comirec_sa", _A | {"negatives": 256, "interests": 1}, _SHIFT,
               FIVE_SEEDS, family="ComiRec-SA"),
        Recipe("HCN-R", "hcn_r", _A_HCN | {"negatives": 256}, _SHIFT, SEEDS, notes=RECONSTRUCTED),
        Recipe("HCN-R, K=1", "hcn_r", _A_HCN | {"negatives": 256, "interests": 1}, _SHIFT, SEEDS,
               family="HCN-R", notes=RECONSTRUCTED),
    ),
    reference="ComiRec-SA",
    kind="shift",
)  # fmt: skip

SSL_EPOCH = Table(
    "simulator",
    "user-split",
    (Recipe("SSL two-tower", "ssl_two_tower", {}, {"batch_size": 1024}),),
    reference="",
    unit="epoch",
    kind="epoch-time",
)

TABLES = {
    "beauty-user-split": BEAUTY_USER_SPLIT,
    "ml-1m-leave-one-out": ML_1M_LEAVE_ONE_OUT,
    "beauty-leave-one-out": BEAUTY_LEAVE_ONE_OUT,
    "beauty-next-item": BEAUTY_NEXT_ITEM,
    "simulator": SIMULATOR,
    "ssl-epoch": SSL_EPOCH,
}
