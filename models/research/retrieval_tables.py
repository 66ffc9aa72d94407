"""The tables of `models/research/bench_retrieval.py`: which models, settings, seeds and budgets.

Settings of learned rows are the specification's, the defaults, or were chosen by hand on validation
cases; those of ItemKNN and EASE are chosen by each run, on validation cases, from the values in
`grid`. Test cases were looked at for two choices: the world of SIMULATOR (see its `chosen`), and
HCN-R's penalty weight of 0, taken from the specification's prototype on Beauty's test users.
Budgets are steps of one batch; what a row took is in its result. Every learned row but the timing
of an epoch asks for three seeds or more; a run with `--seeds` makes the first of them only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from models.research.comparison import BEST_COUNTING

SEEDS = (19, 20, 21)
FIVE_SEEDS = (19, 20, 21, 22, 23)
COUNTING = frozenset({"popularity", "markov", "item_knn", "ease"})
RECONSTRUCTED = "reconstructed from the paper's abstract"
SAMPLED = "sampled softmax with logQ in place of the paper's binary loss"
DEALT = "200 candidates in all, dealt in turn; lists of the first seed"


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a model, its settings and its training, without the seed.

    `source` is a model of the registry, one of COUNTING, or "union" of the rows named in
    `settings["of"]`. `training` are the fields of SequenceTraining (PairTraining for pairs). `grid`
    are the values that a counting row tries for further settings, every combination.
    """

    model: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    family: str = ""
    notes: str = ""
    references: tuple[str, ...] = ()  # rows that this one is compared with; empty: the table's
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values; the empty one alone without a grid."""
        combinations = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in combinations]

    @property
    def deterministic(self) -> bool:
        """Whether no seed changes the row's figures."""
        return self.source in COUNTING


@dataclass(frozen=True)
class Table:
    """Models compared with each other on the same cases.

    `kind` "shift" trains once and measures on two sets of cases, which fill two tables. `world` and
    `users` are the simulator's knobs where they differ from its defaults, and `chosen` says how
    they were chosen: the page prints all of it. A run with a smaller `--budget` than `least_budget`
    leaves the table out: it is too long for the small `make bench-models`.
    """

    data: Literal["amazon-beauty", "ml-1m", "simulator"]
    protocol: Literal["user-split", "leave-one-out", "last-fifth", "next-item"]
    recipes: tuple[Recipe, ...]
    references: tuple[str, ...]
    primary: str = "recall@50"  # metric that rows are sorted by and differences are of
    unit: str = "test user"
    kind: Literal["sequences", "pairs", "shift", "epoch-time"] = "sequences"
    world: dict[str, Any] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    chosen: str = ""
    least_budget: float = 0.0

    def references_of(self, recipe: Recipe) -> tuple[str, ...]:
        """The rows that a row is compared with, never itself."""
        return tuple(r for r in recipe.references or self.references if r != recipe.model)


def _counting(neighbours: tuple[int, ...], l2: tuple[float, ...] = ()) -> tuple[Recipe, ...]:
    """The baselines by counting with what ItemKNN and EASE try. Grids are small where a fit takes
    long: EASE's 22 s on Beauty. Without `l2` there is no EASE: it has no form for pairs."""
    seed = SEEDS[:1]
    found = (
        Recipe("Popularity", "popularity", seeds=seed),
        Recipe("Markov", "markov", seeds=seed),
        Recipe("ItemKNN", "item_knn", seeds=seed,
               grid={"neighbours": neighbours, "shrink": (0.0, 10.0)}),
    )  # fmt: skip
    return (*found, Recipe("EASE", "ease", seeds=seed, grid={"l2": l2})) if l2 else found


_BEAUTY_COUNTING = _counting(neighbours=(50, 200), l2=(250.0, 1000.0, 4000.0))
_ML_COUNTING = _counting(neighbours=(20, 50), l2=(50.0, 250.0, 1000.0))
_SIMULATOR_COUNTING = _counting(neighbours=(50, 200), l2=(50.0, 250.0, 1000.0, 4000.0))

# Protocol A as in the specification's section 9: at most 5,000 batches of 128 users.
_A = {"history": 20}
_A_HCN = _A | {"short_history": 5}
_COSINE = {"normalise": True, "temperature": 0.1}

# In-batch negatives: batches as large as in SSL_EPOCH, a million examples.
_A_SSL = {"steps": 1000, "batch_size": 1024, "validate_every": 100}
_SSL = "SSL two-tower"

_AGAINST = ("ComiRec-SA", BEST_COUNTING)  # besides a row's own control

BEAUTY_USER_SPLIT = Table(
    "amazon-beauty",
    "user-split",
    (
        *_BEAUTY_COUNTING,
        Recipe("YouTube-DNN", "youtube_dnn", _A),
        Recipe("YouTube-DNN, cosine", "youtube_dnn", _A | _COSINE, family="YouTube-DNN"),
        Recipe("MIND", "mind", _A, references=("MIND, K=1", *_AGAINST)),
        Recipe("MIND, K=1", "mind", _A | {"interests": 1}, family="MIND"),
        Recipe("ComiRec-SA", "comirec_sa", _A, references=("ComiRec-SA, K=1", BEST_COUNTING)),
        Recipe("HCN-R", "hcn_r", _A_HCN, notes=RECONSTRUCTED,
               references=("HCN-R, K=1", *_AGAINST)),
        Recipe("ComiRec-SA, K=1", "comirec_sa", _A | {"interests": 1}, family="ComiRec-SA"),
        Recipe("HCN-R, K=1", "hcn_r", _A_HCN | {"interests": 1}, family="HCN-R",
               notes=RECONSTRUCTED),
        Recipe("ComiRec-SA, cosine", "comirec_sa", _A | _COSINE, family="ComiRec-SA",
               references=("ComiRec-SA, K=1, cosine", *_AGAINST)),
        Recipe("ComiRec-SA, K=1, cosine", "comirec_sa", _A | _COSINE | {"interests": 1},
               family="ComiRec-SA"),
        Recipe("HCN-R, cosine", "hcn_r", _A_HCN | _COSINE, family="HCN-R", notes=RECONSTRUCTED,
               references=("HCN-R, K=1, cosine", "ComiRec-SA, cosine", *_AGAINST)),
        Recipe("HCN-R, K=1, cosine", "hcn_r", _A_HCN | _COSINE | {"interests": 1},
               family="HCN-R", notes=RECONSTRUCTED),
        Recipe("DESMIL-R", "desmil_r", _A | {"start_epoch": 0}, notes=RECONSTRUCTED),
        Recipe("ComiRec-DR", "comirec_dr", _A | {"dr_init_std": 0.125}, {"learning_rate": 5e-3},
               references=("ComiRec-DR, K=1", *_AGAINST)),
        Recipe("ComiRec-DR, K=1", "comirec_dr", _A | {"dr_init_std": 0.125, "interests": 1},
               {"learning_rate": 5e-3}, family="ComiRec-DR"),
        Recipe("SASRec, sampled softmax", "sasrec", _A | {"width": 64, "loss": "sampled"},
               family="SASRec", notes=SAMPLED),
        Recipe(_SSL, "ssl_two_tower", {}, _A_SSL),
        # Specification section 2. Without the short history the co-network has nothing to join.
        Recipe("HCN-R, L=0", "hcn_r", _A_HCN | {"layers": 0}, family="HCN-R",
               notes=f"{RECONSTRUCTED}; no hierarchy", references=("HCN-R",)),
        Recipe("HCN-R, long only", "hcn_r", _A_HCN | {"short": False}, family="HCN-R",
               notes=f"{RECONSTRUCTED}; no short history and hence no co-network",
               references=("HCN-R",)),
        Recipe("HCN-R, concatenated", "hcn_r", _A_HCN | {"co_network": "concat"}, family="HCN-R",
               notes=f"{RECONSTRUCTED}; one extractor over the short history and the long one",
               references=("HCN-R",)),
    ),
    references=_AGAINST,
)  # fmt: skip

# Leave-one-out: every training event is a target; SASRec learns from all steps of a user at once.
_STEPS = {"validate_every": 500, "valid_metric": "ndcg@10", "patience": 4}
_SEQUENCES = _STEPS | {"sampling": "sequences", "batch_size": 64, "random_windows": True}
_EVENTS = _STEPS | {"sampling": "events", "min_history": 1, "batch_size": 256}
# Cosine scores: after 500 steps HCN-R had validation NDCG@10 of .087 with them, .048 without.
_ML_EVENTS = _EVENTS | {"steps": 8000, "learning_rate": 2e-3}
_ML = {"history": 20, "negatives": 256, "normalise": True, "temperature": 0.07}
_ML_SAS = {"width": 64, "history": 200, "negatives": 256}

_SAS_AND_COUNTING = ("SASRec", "SASRec, sampled softmax", BEST_COUNTING)
_ML_SAS_SAMPLED = Recipe(
    "SASRec, sampled softmax",
    "sasrec",
    _ML_SAS | {"loss": "sampled"},
    _SEQUENCES | {"steps": 7000},
    family="SASRec",
    notes=SAMPLED,
)


def _ml_interests(references: tuple[str, ...]) -> tuple[Recipe, ...]:
    """HCN-R and ComiRec-SA with their controls; `references` besides those."""
    return (
        Recipe("HCN-R", "hcn_r", _ML | {"short_history": 5}, _ML_EVENTS, notes=RECONSTRUCTED,
               references=("HCN-R, K=1", "ComiRec-SA", *references)),
        Recipe("HCN-R, K=1", "hcn_r", _ML | {"short_history": 5, "interests": 1},
               _ML_EVENTS, family="HCN-R", notes=RECONSTRUCTED),
        Recipe("ComiRec-SA", "comirec_sa", _ML, _ML_EVENTS,
               references=("ComiRec-SA, K=1", *references)),
        Recipe("ComiRec-SA, K=1", "comirec_sa", _ML | {"interests": 1}, _ML_EVENTS,
               family="ComiRec-SA"),
    )  # fmt: skip


ML_1M_LEAVE_ONE_OUT = Table(
    "ml-1m",
    "leave-one-out",
    (
        *_ML_COUNTING,
        _ML_SAS_SAMPLED,
        Recipe("SASRec", "sasrec", _ML_SAS | {"loss": "binary"}, _SEQUENCES | {"steps": 16000},
               notes="the paper's binary loss"),
        *_ml_interests(_SAS_AND_COUNTING),
        Recipe("YouTube-DNN", "youtube_dnn", _ML, _ML_EVENTS),
        Recipe(_SSL, "ssl_two_tower", {},
               _EVENTS | {"batch_size": 1024, "steps": 1500, "validate_every": 250}),
        Recipe("Union of SASRec (sampled softmax), Markov, HCN-R", "union",
               {"of": ["SASRec, sampled softmax", "Markov", "HCN-R"]}, seeds=SEEDS[:1],
               notes=DEALT),
        Recipe("Union of SASRec (sampled softmax), HCN-R (K=1)", "union",
               {"of": ["SASRec, sampled softmax", "HCN-R, K=1"]}, seeds=SEEDS[:1],
               notes=f"{DEALT}; the best of each family by validation"),
        Recipe("Union of the four best trained sources", "union",
               {"of": ["SASRec, sampled softmax", "HCN-R, K=1", "ComiRec-SA, K=1", "SASRec"]},
               seeds=SEEDS[:1],
               notes=f"{DEALT}; the four with the best validation NDCG@10"),
    ),
    references=_SAS_AND_COUNTING,
    primary="ndcg@10",
)  # fmt: skip

# The settings of ML_1M_LEAVE_ONE_OUT, not chosen anew.
_SAS_SAMPLED_AND_COUNTING = ("SASRec, sampled softmax", BEST_COUNTING)
ML_1M_LAST_FIFTH = Table(
    "ml-1m",
    "last-fifth",
    (
        *_ML_COUNTING,
        _ML_SAS_SAMPLED,
        *_ml_interests(_SAS_SAMPLED_AND_COUNTING),
    ),
    references=_SAS_SAMPLED_AND_COUNTING,
    primary="ndcg@10",
    least_budget=1.0,
)  # fmt: skip

BEAUTY_LEAVE_ONE_OUT = Table(
    "amazon-beauty",
    "leave-one-out",
    (
        *_BEAUTY_COUNTING,
        Recipe("SASRec, sampled softmax", "sasrec",
               {"width": 64, "history": 20, "loss": "sampled"},
               _STEPS | {"sampling": "sequences", "batch_size": 128, "steps": 5000},
               family="SASRec", notes=SAMPLED),
        Recipe("HCN-R", "hcn_r", _A_HCN, _EVENTS | {"steps": 5000}, notes=RECONSTRUCTED,
               references=("HCN-R, K=1", *_AGAINST)),
        Recipe("HCN-R, K=1", "hcn_r", _A_HCN | {"interests": 1}, _EVENTS | {"steps": 5000},
               family="HCN-R", notes=RECONSTRUCTED),
        Recipe("ComiRec-SA", "comirec_sa", _A, _EVENTS | {"steps": 5000},
               references=("ComiRec-SA, K=1", BEST_COUNTING)),
        Recipe("ComiRec-SA, K=1", "comirec_sa", _A | {"interests": 1}, _EVENTS | {"steps": 5000},
               family="ComiRec-SA"),
    ),
    references=_AGAINST,
    primary="ndcg@10",
)  # fmt: skip

_PLAIN = "SSL, alpha=0"


def _pairs(model: str, *against: str, **settings: Any) -> Recipe:
    references = (_PLAIN, *against, BEST_COUNTING)
    return Recipe(model, "ssl_item_to_item", settings, family=_SSL, references=references)


BEAUTY_NEXT_ITEM = Table(
    "amazon-beauty",
    "next-item",
    (
        *_counting(neighbours=(20, 50)),
        _pairs(_PLAIN, alpha=0.0),
        _pairs("SSL, CFM", "SSL, RFM", alpha=0.3),
        _pairs("SSL, FD", augmentation="fd"),
        _pairs("SSL, spread-out", augmentation="spread_out"),
        _pairs("SSL, RFM", augmentation="rfm"),
        _pairs("SSL, RFM no complement", "SSL, RFM", augmentation="rfm_no_complement"),
        _pairs("SSL, CFM no dropout", "SSL, CFM", value_dropout=0.0),
        _pairs("SSL, dropout only", "SSL, CFM", augmentation="dropout"),
    ),
    references=(_PLAIN, BEST_COUNTING),
    primary="tail_recall@50",
    kind="pairs",
)  # fmt: skip

# Training users whose interests come in related pairs; test users of the same kind (-iid) and of
# the opposite kind (-ood). Specification section 7.8.
_SHIFT = {"steps": 2500, "validate_every": 250}
_SHIFTED = (
    *_SIMULATOR_COUNTING,
    Recipe("ComiRec-SA", "comirec_sa", _A | {"negatives": 256}, _SHIFT, FIVE_SEEDS,
           references=("ComiRec-SA, K=1", BEST_COUNTING)),
    Recipe("DESMIL-R", "desmil_r", _A | {"negatives": 256, "start_epoch": 0}, _SHIFT,
           FIVE_SEEDS, notes=RECONSTRUCTED),
    Recipe("ComiRec-SA, K=1", "comirec_sa", _A | {"negatives": 256, "interests": 1}, _SHIFT,
           FIVE_SEEDS, family="ComiRec-SA"),
    Recipe("HCN-R", "hcn_r", _A_HCN | {"negatives": 256}, _SHIFT, notes=RECONSTRUCTED,
           references=("HCN-R, K=1", *_AGAINST)),
    Recipe("HCN-R, K=1", "hcn_r", _A_HCN | {"negatives": 256, "interests": 1}, _SHIFT,
           family="HCN-R", notes=RECONSTRUCTED),
)  # fmt: skip
SIMULATOR = Table(
    "simulator",
    "user-split",
    _SHIFTED,
    references=_AGAINST,
    kind="shift",
    world={"clusters": 12, "items_per_cluster": 40, "rho": 20.0},
    users={"train_users": 2_000, "valid_users": 500, "test_users": 2_000, "mean_length": 8},
    chosen="this world was chosen because EASE loses more between its two test sets than in the "
    "default world: EASE's test figures were looked at for the choice, no other model's",
)
SIMULATOR_DEFAULT = Table(
    "simulator",
    "user-split",
    _SHIFTED,
    references=_AGAINST,
    kind="shift",
    chosen="the simulator's default world",
)

SSL_EPOCH = Table(
    "simulator",
    "user-split",
    (Recipe(_SSL, "ssl_two_tower", {}, {"batch_size": 1024}, SEEDS[:1]),),
    references=(),
    unit="epoch",
    kind="epoch-time",
    world={"clusters": 200, "items_per_cluster": 200},
    users={"train_users": 32_000, "valid_users": 500, "test_users": 500, "mean_length": 32},
    chosen="sized as Gowalla: 40,000 items and about a million training events",
)

TABLES = {
    "beauty-user-split": BEAUTY_USER_SPLIT,
    "ml-1m-leave-one-out": ML_1M_LEAVE_ONE_OUT,
    "ml-1m-last-fifth": ML_1M_LAST_FIFTH,
    "beauty-leave-one-out": BEAUTY_LEAVE_ONE_OUT,
    "beauty-next-item": BEAUTY_NEXT_ITEM,
    "simulator": SIMULATOR,
    "simulator-default": SIMULATOR_DEFAULT,
    "ssl-epoch": SSL_EPOCH,
}
