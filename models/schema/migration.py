"""Rows of one layout of a group as rows of another, value by value."""

from __future__ import annotations

import numpy as np

from models.schema.groups import Feature, FeatureGroup


def moved(record: np.ndarray, of: FeatureGroup, to: FeatureGroup) -> np.ndarray:
    """A record of one layout as a record of another: values go by their names of now, and what the
    first layout lacks has its default. Of a list that is shorter there the first are kept."""
    there = {feature.name_now: feature for feature in of.features}
    made = to.defaults()
    for feature in to.features:
        before = there.get(feature.name_now)
        if before is None or not _same(before, feature):
            continue
        if feature.shape:
            kept = min(before.shape[0], feature.shape[0])
            made[feature.name][:kept] = record[before.name][:kept]
        else:
            made[feature.name] = record[before.name]
    if to.name == "history":
        made["length"] = min(int(made["length"]), len(made["item_keys"]))
    return made


def _same(before: Feature, now: Feature) -> bool:
    """Whether the values of one feature may stand in the other."""
    types = np.dtype(before.dtype), np.dtype(now.dtype)
    if types[0] != types[1] and {each.kind for each in types} != {"f"}:
        return False
    if len(before.shape) != len(now.shape):
        return False
    return before.shape == now.shape or not now.whole
