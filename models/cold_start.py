"""What is served before anything is trained: a model of both parts without learned weights.

Published under the name of a model that is to be trained, so that this one is its next version.
Retrieval finds what is like the user's history by declared fields (categories, bags, texts,
vectors) and what is new; ranking adds what was chosen lately, as the items' counters tell. An
item's row in the model's own table is how new it is: 1 the newest (`models/data/own/newest.py`). An
item that came since (`models/rows.py`) is newer, the later its row in the catalogue; it is found
and ranked as the others. What values and vectors count for is told by the model's own table.

Not probabilities: scores tell one item from another, and answers say NO_MODEL. A task that predicts
a value is scored 1 for all. Retrieval knows no counters: what is popular is lifted among the
candidates, which are all items of a small catalogue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

from models import artifact
from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.ranking.heads import probabilities
from models.rows import put, rows_in, with_room
from models.schema.compiled import Schema
from models.schema.inputs import Part, Reads, reads_of
from models.schema.layout import count_column

NAME = "cold_start"
WIDTH = 128  # signs by which a value is told: two of them agree by chance by 0.09 of 1
CONTENT, NEW, POPULAR = 2.0, 1.0, 0.5  # weights; of the cosine, of 0..1, of the log of a count
COUNTERS = ("count", "counters")  # how and of what group a source counts an item's events
BIAS = -3.0  # so that no task's score is near 1, where float32 tells few apart


class ColdStart(nn.Module):
    """See the module docstring; a RetrievalModel, and what ranking asks of a model.

    `bags`, `vectors`: fields of items whose values are compared. `popularity`: of each task the
    column of items' counters that counts its event, "" without one."""

    source, num_interests = NAME, 1
    _items: Tensor  # float[n + 1, d]: content of length 1 or 0, then newness: 0..1, or above 1
    _rows: Tensor | None  # int64[own n + 1]: where the model's own items are; None: in their rows

    def __init__(
        self, reads: Reads, bags: Sequence[str], vectors: Sequence[str], popularity: Sequence[str]
    ) -> None:
        super().__init__()
        self.reads, self.tasks, self.counters = reads, reads.schema.tasks, reads.counters
        self.of_value = tuple(task.target == "value" for task in reads.tasks)
        self._bags, self._vectors, self._popularity = bags, vectors, popularity
        self._counted = [t for t, column in enumerate(popularity) if column]
        self._columns = [self.counters.index(popularity[t]) for t in self._counted]
        self.register_buffer("_items", torch.zeros(1, 1), persistent=False)
        self.register_buffer("_rows", None, persistent=False)
        self._content: Content | None = None
        self._since, self._newest = 0, 1.0  # items that it does not know, and the most of newness

    @classmethod
    def of(cls, schema: Schema, items: ItemTable) -> ColdStart:
        """The model of a domain and its items."""
        declared = schema.declaration
        every = reads_of(declared, schema.layout, "ranking", items.sizes)
        counted = {s.columns[0]: s for s in every.sources if (s.how, s.group) == COUNTERS}
        popularity = []
        for task in declared.tasks:
            of_task = [c for c in declared.item_counts if c.event == task.event and not c.of_value]
            of_task = [] if task.target == "value" else of_task
            # The count that fades soonest: it follows the days.
            columns = (
                count_column(declared, c) for c in sorted(of_task, key=lambda c: c.half_life_s)
            )
            popularity.append(next((c for c in columns if c in counted), ""))
        kept = every.only("key", "history").sources
        found = (counted[column] for column in dict.fromkeys(popularity) if column)
        fields = declared.item_fields
        model = cls(
            replace(every, sources=(*kept, *found)),
            [f.name for f in fields if f.type in ("category", "bag", "text")],
            [f.name for f in fields if f.type == "vector"],
            popularity,
        )
        model.load_items(items)
        return model.eval()

    def config(self) -> dict[str, Any]:
        """What besides `reads` is needed to build the module again (JSON-ready)."""
        return {"bags": self._bags, "vectors": self._vectors, "popularity": self._popularity}

    @property
    def device(self) -> torch.device:
        return self._items.device

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Compute the vectors of an item table. `known`: the model's own, unless that is the same.
        ValueError for a table without a field."""
        known = items if known is None else known
        own = rows_in(known, items)
        self._content = Content(known, self._bags, self._vectors)
        newness, self._since = _newness(len(known), own[1:], 0)
        newness = np.append(np.zeros(1, np.float32), newness)
        vectors = np.hstack([self._content(items.features), newness[:, None]])
        self._items, self._rows = torch.from_numpy(vectors).to(self.device), None
        self._newest = 1.0 + self._since / max(len(known), 1)
        if known is not items:
            rows = np.zeros(len(known) + 1, np.int64)
            rows[own] = np.arange(len(own))
            rows[0] = 0
            self._items = with_room(self._items)
            self._rows = torch.from_numpy(rows).to(self.device)

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> bool:
        """As `load_items`, of a later state: `rows` int64, ascending, have changed or are new.

        False where an item that the model knows has come to a row that was taken for a newer one's:
        the items that came since are counted by their rows. Or where it had its own table."""
        own, before = rows_in(known, items, rows), len(self._items)
        old = rows < before
        was_new = self._items[torch.from_numpy(rows[old]).to(self.device), -1].cpu().numpy() > 1
        if self._rows is None or self._content is None or (was_new != (own[old] == 0)).any():
            return False
        content = torch.from_numpy(self._content(items.features[rows])).to(self.device)
        late, since = _newness(len(known), own[~old], self._since)
        at = torch.from_numpy(rows[old]).to(self.device)
        newness = torch.cat([self._items[at, -1], torch.from_numpy(late).to(self.device)])
        vectors = torch.cat([content, newness[:, None]], 1)
        self._items = put(self._items, rows, vectors, len(items) + 1)
        self._since, self._newest = since, 1.0 + since / max(len(known), 1)
        there = own > 0
        self._rows = put(self._rows, own[there], torch.from_numpy(rows[there]), len(self._rows))
        return True

    def places(self, rows: Tensor) -> Tensor:
        """bool[N]: every item has a place."""
        return rows > 0

    def prepare_serving(self) -> None:
        """As RankingModel; there is nothing to prepare."""

    @torch.no_grad()
    def encode_users(self, batch: UserBatch) -> Tensor:
        """float32[B, 1, d]: the direction of the history's items, and the weight of newness, of
        which the newest item has NEW."""
        rows = torch.from_numpy(np.ascontiguousarray(batch.history)).to(self.device)
        if self._rows is not None:
            rows = self._rows[rows]
        taste = functional.normalize(self._items[rows][..., :-1].sum(1), dim=-1)
        new = torch.full((len(taste), 1), NEW / self._newest, device=self.device)
        return torch.cat([CONTENT * taste, new], dim=1)[:, None]

    def item_vectors(self, rows: np.ndarray | None = None) -> Tensor:
        """float32[n + 1, d], row 0 the zero vector; or those of `rows` int64[N]."""
        return self._items if rows is None else self._items[torch.from_numpy(rows).to(self.device)]

    user_part = encode_users

    @torch.no_grad()
    def score(self, user: Tensor, row_user: Tensor, item_rows: Tensor, counters: Tensor) -> Tensor:
        """float32[N, T] of rows (user int64[N] in 0..B-1, item row int64[N], counters float[N, C]):
        in 0..1, or 1 of a task that predicts a value."""
        alike = (user[row_user, 0] * self._items[item_rows]).sum(1, keepdim=True)
        logits = (alike + BIAS).repeat(1, len(self.tasks))
        logits[:, self._counted] += POPULAR * counters[:, self._columns].clamp_min(0).log1p()
        scores = probabilities(logits)
        scores[:, [t for t, value in enumerate(self.of_value) if value]] = 1.0
        return scores


def build(parameters: Mapping[str, Any], reads: Reads) -> ColdStart:
    """The module of a published config. TypeError or ValueError for one that is another's."""
    return ColdStart(reads, **parameters)


def _newness(known: int, own: np.ndarray, since: int) -> tuple[np.ndarray, int]:
    """float32[N] of items in the order of their rows, by their rows int64[N] in the model's own
    table of `known` items, or 0: up to 1 in that, above 1 for what came since. And how many have
    come since then, `since` before."""
    number, n = since + np.cumsum(own == 0), max(known, 1)
    newness = np.where(own > 0, (known + 1 - own) / n, 1.0 + number / n).astype(np.float32)
    return newness, int(number[-1]) if len(own) else since


class Content:
    """What items are like by declared fields, as one table tells what their values count for."""

    def __init__(self, known: ItemTable, bags: Sequence[str], vectors: Sequence[str]) -> None:
        self._items = len(known)
        self._counts = {name: np.unique(_values(known.features, name), return_counts=True)
                        for name in bags}  # fmt: skip
        self._means = {name: _mean(_numbers(known.features, name)) for name in vectors}

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32[N, d] of the fields [N] of items: of each its values and vectors as one vector of
        length 1; zero of one without any. A value counts by how few items have it."""
        parts = [self._signs(features), *(self._centred(features, name) for name in self._means)]
        lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
        units = [
            part / np.maximum(length, 1e-6) for part, length in zip(parts, lengths, strict=True)
        ]
        content = np.hstack(units)
        length = np.linalg.norm(content, axis=1, keepdims=True)
        return (content / np.maximum(length, 1e-6)).astype(np.float32)

    def _signs(self, features: np.ndarray) -> np.ndarray:
        """float32[N, WIDTH]: the sum of the items' values, each in a direction drawn by its hash:
        no two of them are alike, however many there are."""
        found = np.zeros((len(features), WIDTH), np.float32)
        for name in self._counts:
            stored = _values(features, name)
            values, places = np.unique(stored, return_inverse=True)
            texts = (f"{name}={value}".encode() for value in values.tolist())
            digests = b"".join(map(xxhash.xxh3_128_digest, texts))
            bits = np.unpackbits(np.frombuffer(digests, np.uint8)).reshape(-1, WIDTH)
            weights = self._weights(name, values)
            directions = (2.0 * bits - 1.0).astype(np.float32) * weights[:, None]
            for slot in places.reshape(stored.shape).T:
                found += directions[slot]
        return found

    def _weights(self, name: str, values: np.ndarray) -> np.ndarray:
        """float32[V]: what values count for; one that no item has as if one more item had it."""
        known, counts = self._counts[name]
        n, at = self._items, np.minimum(np.searchsorted(known, values), len(known) - 1)
        there = known[at] == values
        counted = np.clip(counts[at], 1, max(n, 1))
        weights = np.where(there, np.log((1 + n) / counted), np.log(2 + n))
        weights[values == 0] = 0.0  # none
        return weights.astype(np.float32)

    def _centred(self, features: np.ndarray, name: str) -> np.ndarray:
        """float32[N, d]: a declared vector of each item, less the mean; zero where it is zero."""
        found = _numbers(features, name)
        found[found.any(axis=1)] -= self._means[name]
        return found


def _values(features: np.ndarray, name: str) -> np.ndarray:
    """uint64[N, S]: the values of a category, bag or text, 0 where there are no more."""
    stored = np.asarray(features[name])
    return stored.reshape(len(stored), math.prod(stored.shape[1:])).astype(np.uint64)


def _numbers(features: np.ndarray, name: str) -> np.ndarray:
    """float32[N, d]: a declared vector."""
    return np.asarray(features[name]).astype(np.float32)


def _mean(vectors: np.ndarray) -> np.ndarray:
    """float32[d]: of those that are not zero."""
    known = vectors.any(axis=1)
    return vectors[known].mean(axis=0) if known.any() else vectors[0]


def publish(
    artifacts_dir: Path,
    name: str,
    part: Part,
    schema: Schema,
    items: ItemTable,
    data_window: Mapping[str, Any],
    still: Callable[[], bool] = lambda: True,
) -> str:
    """Publish the cold start of a domain as a version of the model `name`; its id. `still` and
    errors as `artifact.publish`."""
    model = ColdStart.of(schema, items)
    return artifact.publish(
        artifacts_dir,
        name,
        tensors={},
        config={"model": NAME, "part": part, "parameters": model.config()},
        reads=model.reads,
        declaration=schema.declaration,
        items=items,
        metrics={},
        data_window=data_window,
        still=still,
    )
