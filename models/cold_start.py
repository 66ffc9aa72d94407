"""What is served before anything is trained: a model of both parts without learned weights.

Published under the name of a model that is to be trained, so that this one is its next version.
Retrieval finds what is like the user's history by declared fields (categories, bags, texts,
vectors) and what is new; ranking adds what was chosen lately, as the items' counters tell. An
item's row in its table is how new it is: 1 the newest (`models/data/own/newest.py`).

Not probabilities: scores tell one item from another, and answers say NO_MODEL. A task that predicts
a value is scored 1 for all. Retrieval knows no counters: what is popular is lifted among the
candidates, which are all items of a small catalogue.
"""

from __future__ import annotations

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
    _items: Tensor  # float[n + 1, d]: content of length 1 or 0, then newness 0..1

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

    def load_items(self, items: ItemTable) -> None:
        """Compute the vectors of an item table."""
        n = len(items)
        content = content_of(items, self._bags, self._vectors)
        newness = np.zeros((n + 1, 1), np.float32)
        newness[1:, 0] = np.arange(n, 0, -1) / max(n, 1)
        self._items = torch.from_numpy(np.hstack([content, newness])).to(self.device)

    def prepare_serving(self) -> None:
        """As RankingModel; there is nothing to prepare."""

    @torch.no_grad()
    def encode_users(self, batch: UserBatch) -> Tensor:
        """float32[B, 1, d]: the direction of the history's items, and the weight of newness."""
        rows = torch.from_numpy(np.ascontiguousarray(batch.history)).to(self.device)
        taste = functional.normalize(self._items[rows][..., :-1].sum(1), dim=-1)
        new = torch.full((len(taste), 1), NEW, device=self.device)
        return torch.cat([CONTENT * taste, new], dim=1)[:, None]

    def item_vectors(self) -> Tensor:
        """float32[n + 1, d], row 0 the zero vector."""
        return self._items

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


def content_of(items: ItemTable, bags: Sequence[str], vectors: Sequence[str]) -> np.ndarray:
    """float32[n + 1, d]: of each item its values and vectors as one vector of length 1; zero of one
    without any, and of row 0. A value counts by how few items have it."""
    parts = [_signs(items, bags), *(_centred(items, name) for name in vectors)]
    lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    units = [part / np.maximum(length, 1e-6) for part, length in zip(parts, lengths, strict=True)]
    content = np.hstack(units)
    length = np.linalg.norm(content, axis=1, keepdims=True)
    return (content / np.maximum(length, 1e-6)).astype(np.float32)


def _signs(items: ItemTable, bags: Sequence[str]) -> np.ndarray:
    """float32[n + 1, WIDTH]: the sum of the items' values, each in a direction drawn by its hash:
    no two of them are alike, however many there are."""
    found = np.zeros((len(items) + 1, WIDTH), np.float32)
    for name in bags:
        stored = np.asarray(items.features[name]).reshape(len(found), -1)
        values, places, counts = np.unique(stored, return_inverse=True, return_counts=True)
        texts = (f"{name}={value}".encode() for value in values.tolist())
        digests = b"".join(map(xxhash.xxh3_128_digest, texts))
        bits = np.unpackbits(np.frombuffer(digests, np.uint8)).reshape(-1, WIDTH)
        weights = np.log((1 + len(items)) / np.minimum(counts, len(items)))
        weights[values == 0] = 0.0  # none
        directions = (2.0 * bits - 1.0).astype(np.float32) * weights[:, None].astype(np.float32)
        for slot in places.reshape(stored.shape).T:
            found += directions[slot]
    return found


def _centred(items: ItemTable, name: str) -> np.ndarray:
    """float32[n + 1, d]: a declared vector of each item, less their mean; zero where it is zero."""
    found = np.asarray(items.features[name]).astype(np.float32)
    known = found.any(axis=1)
    if known.any():
        found[known] -= found[known].mean(axis=0)
    return found


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
        config={"model": NAME, "parameters": model.config()},
        reads=model.reads,
        declaration=schema.declaration,
        items=items,
        metrics={},
        data_window=data_window,
        still=still,
        arrays={"item_vectors": model.item_vectors().numpy()} if part == "retrieval" else {},
    )
