"""Rows of one layout of a group as rows of another, value by value."""

from __future__ import annotations

import numpy as np

from models.schema.groups import Feature, FeatureGroup


def moved(
    records: np.ndarray, of: FeatureGroup, to: FeatureGroup, onto: np.ndarray | None = None
) -> np.ndarray:
    """Records [...] of one layout as records of another: values go by their names of now.

    What the first layout lacks is that of the record `onto`, or has its default. Of a list that is
    shorter there the first are kept.
    """
    there = {feature.name_now: feature for feature in of.features}
    made = np.empty(records.shape, to.dtype)
    made[...] = to.defaults() if onto is None else onto
    for feature in to.features:
        before = there.get(feature.name_now)
        if before is None or not same_kind(before, feature):
            continue
        if feature.shape:
            kept = min(before.shape[0], feature.shape[0])
            made[feature.name][..., :kept] = records[before.name][..., :kept]
        else:
            made[feature.name] = records[before.name]
    if to.name == "history":
        made["length"] = np.minimum(made["length"], made["item_keys"].shape[-1])
    return made


def same_kind(before: Feature, now: Feature) -> bool:
    """Whether values of one feature may stand in the other."""
    types = np.dtype(before.dtype), np.dtype(now.dtype)
    if types[0] != types[1] and {each.kind for each in types} != {"f"}:
        return False
    if len(before.shape) != len(now.shape):
        return False
    return before.shape == now.shape or not now.whole
