"""Stage 3: candidates from candidate generation; popular items when it is down or late."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import numpy as np

from models.catalogue import ItemTable
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest, RetrieveResponse
from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK
from services.common.packed import U4, U8
from services.experiments.declare.parameters import RETRIEVE
from services.router.model_call import Malformed, call, scores_of
from services.router.request import Candidates, Pool, Query
from services.router.surroundings import Surroundings

MAX_CANDIDATES = 5_000  # that candidate generation accepts
POPULAR = "popular"


class Source(Protocol):
    """Where candidates come from: a function of this shape, and its place in SOURCES."""

    def __call__(self, query: Query, around: Surroundings) -> Awaitable[Pool | None]:
        """Those found for the query, some more than are wanted where the filters may remove some;
        None where the source cannot answer, which it has counted."""


async def retrieve(query: Query, around: Surroundings) -> Pool:
    """The candidates of the first source in SOURCES that answers; popular items if none does."""
    for source in SOURCES:
        pool = await source(query, around)
        if pool is not None:
            return pool
    return most_clicked(query)


def candidate_generation(query: Query, around: Surroundings) -> Awaitable[Pool | None]:
    """What the retrieval model finds. The user's excluded keys travel along, so that the answer is
    full."""
    # Blocked items are the router's to remove: a long list must not travel with every request.
    wanted = query.wanted
    asked = wanted + min(len(query.blocked), wanted)
    return call(
        RETRIEVE,
        "Retrieve",
        lambda: RetrieveRequest(
            user=query.user.context,
            num_candidates=min(asked, MAX_CANDIDATES),
            model=query.parameters.retrieval_model,
            exclude_item_keys=query.user.excluded,
        ),
        around.candidate_generation,
        query,
        around.settings.retrieve_ms / 1000.0,
        lambda response: _unpacked(response, query.items),
    )


def _unpacked(response: RetrieveResponse, items: ItemTable) -> Pool:
    """The candidates of an answer. Raises Malformed."""
    version, sources = response.model_version, tuple(response.sources[:])
    packed_keys, packed_rows = response.item_keys, response.item_rows
    packed_source, packed_interest = response.source_index, response.interest_index
    count = len(packed_source)
    if not len(packed_keys) == 8 * count == 8 * len(packed_interest):
        raise Malformed(version, "the packed fields differ in length")
    scores = scores_of(response.scores, count, version)
    source = np.frombuffer(packed_source, np.uint8)
    # Mostly all are of the first one, which is told in a tenth of the time.
    last = 0 if packed_source == bytes(count) else int(source.max())
    if count and last >= len(sources):
        raise Malformed(version, "a source has no name")
    keys = np.frombuffer(packed_keys, U8)
    # Rows of one catalogue are the same items everywhere; of one that came a moment ago only the
    # replica may have heard.
    rows = np.frombuffer(packed_rows, U4) if response.catalogue == items.fingerprint else None
    # A fifth of the time of `min` and `max`.
    if rows is None or len(rows) != count or (count and rows.item(rows.argmax()) > len(items)):
        rows = items.index_of(keys)
        whole = bool(rows.all())
    elif count and not rows.item(rows.argmin()):
        raise Malformed(version, "a row is of no item")
    else:
        whole = True
    candidates = Candidates(
        rows,
        keys,
        scores,
        source,
        np.frombuffer(packed_interest, np.uint8),
        sources,
        screened=whole,
    )
    degradations = tuple(response.degradations) if response.degradations else ()
    return Pool(candidates, count, version, degradations=degradations)


def most_clicked(query: Query) -> Pool:
    """Popular items, so many that enough are left whatever the filters remove."""
    wanted, blocked = query.wanted, len(query.blocked)
    count = wanted + min(blocked, wanted) + len(query.user.excluded) // 8 + blocked
    candidates = popular(query, count)
    return Pool(candidates, len(candidates.rows), degradations=(POPULAR_FALLBACK,))


def popular(query: Query, count: int) -> Candidates:
    """The most chosen items."""
    rows, shares = query.popular.rows_in(query.items, count)
    zeros = np.zeros(len(rows), np.uint8)
    return Candidates(rows, query.items.keys[rows], shares, zeros, zeros, (POPULAR,))


SOURCES: tuple[Source, ...] = (candidate_generation,)
