"""Reads the Open Bandit Dataset (Saito et al. 2008.07146): real logs with true propensities.

One file holds what one policy showed in one campaign: an impression of one item at one of three
places per row. The policies: `random` (uniform) and `bts` (Bernoulli Thompson sampling, whose
propensities change from row to row because it went on learning).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.data.delimited import read_table
from models.data.errors import DataError
from models.data.source_files import find

POLICIES = ("random", "bts")
ITEMS = {"all": 80, "men": 34, "women": 46}  # of each campaign
POSITIONS = 3


@dataclass(frozen=True, slots=True, eq=False)
class BanditLog:
    """n impressions: items int64[n], positions int64[n] in 0..2, clicks float64[n] of 0 and 1,
    propensities float64[n] of the item given its place."""

    policy: str
    campaign: str
    items: np.ndarray
    positions: np.ndarray
    clicks: np.ndarray
    propensities: np.ndarray

    @property
    def num_items(self) -> int:
        return ITEMS[self.campaign]


def read(folder: Path, policy: str, campaign: str) -> BanditLog:
    """Read folder/policy/campaign/campaign.csv (or .gz); DataError says what is wrong with it."""
    if policy not in POLICIES or campaign not in ITEMS:
        raise DataError(
            f"open bandit: no log of policy {policy!r} in campaign {campaign!r}: policies are "
            f"{', '.join(POLICIES)}, campaigns {', '.join(ITEMS)}"
        )
    path = find(folder / policy / campaign, f"{campaign}.csv")
    columns: dict[str, type[pl.DataType]] = {
        "": pl.Int64,
        "timestamp": pl.String,
        "item_id": pl.Int64,
        "position": pl.Int64,
        "click": pl.Int64,
        "propensity_score": pl.Float64,
        **{f"user_feature_{i}": pl.String for i in range(4)},
        **{f"user-item_affinity_{i}": pl.Float64 for i in range(ITEMS[campaign])},
    }
    frame = read_table(path, columns)
    for name, low, high in (
        ("item_id", 0, ITEMS[campaign] - 1),
        ("position", 1, POSITIONS),
        ("click", 0, 1),
        ("propensity_score", 0, 1),
    ):
        outside = ~pl.col(name).is_between(low, high)
        if name == "propensity_score":
            outside = outside | (pl.col(name) == 0)
        wrong = frame.with_row_index().filter(outside)
        if len(wrong):
            raise DataError(
                f"{path}: line {wrong['index'][0] + 2}: {name} is {wrong[name][0]}, expected "
                f"{'above ' if name == 'propensity_score' else ''}{low} to {high}"
            )
    return BanditLog(
        policy,
        campaign,
        frame["item_id"].to_numpy(),
        frame["position"].to_numpy() - 1,
        frame["click"].cast(pl.Float64).to_numpy(),
        frame["propensity_score"].to_numpy(),
    )
