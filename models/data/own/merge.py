"""Joins the rows of a file with those of earlier imports, and puts the table in its place.

However many rows there are, few of them are in memory at once. The table is written beside the old
one and takes its place by a rename; until then, and after any failure, the old one stands there.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from models.data.own.store import Parts
from models.files import replacing

BUCKET_ROWS = 1_000_000  # events that are sorted at once
STRIDE = 97  # every so many-th time is looked at to divide the events
# What makes an event: whatever else its row holds came with the request.
EVENT = ("user_id", "item_id", "event", "time_ms", "value")


class Merged(NamedTuple):
    """Rows of the file that the table has gained, or updated; and the others: the same event again
    (of which one row counts at most), or a row that a later one of the same id has overruled."""

    new: int
    updated: int
    duplicates: int


def merge_events(path: Path, old: pl.LazyFrame | None, parts: Parts, scratch: Path) -> Merged:
    """Add events to the table in `path`: each once, sorted by time, and where times are equal in
    the order in which they came. What came with the request may be in several rows of one event:
    each column keeps the last of them that says it.

    Equal events have equal times, so the events of one span of time after another are held.
    """
    rows = sum(len(part) for part in _times(parts))
    result, new, updated = Parts(scratch, "sorted"), 0, 0
    for first, end in _spans(old, parts):
        within = pl.col("time_ms").is_between(first, end, closed="left")
        frames = [
            pl.scan_parquet(each, glob=False).filter(within).collect() for each in parts.paths
        ]
        known = (
            pl.DataFrame(schema=frames[0].schema) if old is None else old.filter(within).collect()
        )
        span = pl.concat([known, *frames])
        del frames
        span, gained, changed = _each_once(span, len(known))
        new, updated = new + gained, updated + changed
        result.add(span.sort("time_ms", maintain_order=True))
    result.flush()
    if new or updated:
        _replace(path, result.scan())
    return Merged(new, updated, rows - new - updated)


def _each_once(rows: pl.DataFrame, known: int) -> tuple[pl.DataFrame, int, int]:
    """Each event of `rows` once; how many the table gains, and of how many it had the file tells
    something else. The first `known` rows are the table's."""
    at = pl.col("(row)")
    once = (
        rows.with_row_index("(row)")
        .group_by(EVENT, maintain_order=True)
        .agg(at.first(), at.last().alias("(last)"), pl.exclude("(row)").drop_nulls().last())
    )
    old = once["(row)"] < known
    both = once.filter(old & (once["(last)"] >= known))
    before, unlike = rows[both["(row)"]], pl.repeat(False, len(both), eager=True)
    for name in before.columns:
        unlike |= before[name].ne_missing(both[name])
    return once.select(rows.columns), int((~old).sum()), int(unlike.sum())


def _times(parts: Parts) -> Iterator[pl.Series]:
    for each in parts.paths:
        yield pl.read_parquet(each, columns=["time_ms"], glob=False)["time_ms"]


def _spans(old: pl.LazyFrame | None, parts: Parts) -> list[tuple[int, int]]:
    """Spans of time, first and end, of about BUCKET_ROWS events each and all together."""
    some = [times.gather_every(STRIDE) for times in _times(parts)]
    if old is not None:
        some.append(old.select(pl.col("time_ms").gather_every(STRIDE)).collect()["time_ms"])
    times = pl.concat(some).sort()
    bounds = times.gather_every(max(1, BUCKET_ROWS // STRIDE)).unique().sort().to_list()
    edges = [-(1 << 62), *bounds[1:], 1 << 62]
    return list(itertools.pairwise(edges))


def merge_rows(
    path: Path,
    key: str,
    columns: Sequence[str],
    there: Collection[str],
    old: pl.LazyFrame | None,
    parts: Parts,
    scratch: Path,
) -> Merged:
    """Set rows of the table in `path` by their ids; the last row of an id holds, and stands where
    it came. Other rows stay. `columns`: those of the table; `there`: those of them that the file
    has. The others keep what the table has of them."""
    ids = pl.concat([pl.read_parquet(each, columns=[key], glob=False)[key] for each in parts.paths])
    last = ids.is_last_distinct()
    new = ids.filter(last)
    missing = [name for name in columns if name not in there]
    result, at, updated = Parts(scratch, "last"), 0, 0
    for part in parts:
        rows = part.filter(last.slice(at, len(part)))
        at += len(part)
        if old is not None:
            same = pl.col(key).is_in(rows[key].implode())
            before = old.filter(same).select(key, *missing).collect()
            updated += len(before)
            if missing:
                rows = rows.drop(missing).join(before, on=key, how="left", maintain_order="left")
        result.add(rows.select(columns))
    result.flush()
    together = result.scan()
    if old is not None:
        together = pl.concat([old.filter(~pl.col(key).is_in(new.implode())), together])
    _replace(path, together)
    return Merged(len(new) - updated, updated, len(ids) - len(new))


def _replace(path: Path, rows: pl.LazyFrame) -> None:
    with replacing(path, durable=True) as beside:
        rows.sink_parquet(beside)
