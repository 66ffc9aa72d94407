"""What "key=value" settings make of a training on prepared data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models import registry
from models.layers.embedding_tables import EmbeddingOptions
from models.training.loop import LoopConfig
from models.training.prepared.sequences import SequenceTraining
from models.training.prepared.tables import RankerSpec


@dataclass(frozen=True)
class TableSettings:
    """Settings that belong neither to a model nor to the loop."""

    l2: float = 0.0  # weight of half the sum of squares of the embeddings in the loss
    history_items: int | None = None  # the newest of each history; none: all

    def __post_init__(self) -> None:
        if self.l2 < 0:
            raise ValueError(f"l2 must not be negative, is {self.l2}")
        if self.history_items is not None and self.history_items < 1:
            raise ValueError(f"history_items must be at least 1, is {self.history_items}")


def ranker_spec(name: str, pairs: Sequence[str]) -> tuple[RankerSpec, int | None]:
    """The training of ranking model `name` with "key=value" settings, and history_items."""
    kind = registry.kind_of(name, "ranking")
    own, options, rest, loop = registry.settings(
        pairs, (kind.config, EmbeddingOptions, TableSettings, LoopConfig), ("seed",)
    )
    settings = registry.checked(TableSettings, rest)
    spec = RankerSpec(
        name,
        {**kind.settings, **own},
        registry.checked(EmbeddingOptions, options),
        settings.l2,
        registry.checked(LoopConfig, {**vars(RankerSpec("").loop), **loop}),
    )
    return spec, settings.history_items


def sequence_settings(
    name: str, protocol: str, pairs: Sequence[str], seed: int
) -> tuple[dict[str, Any], SequenceTraining]:
    """The model's settings and the training of retrieval model `name`; pairs are "key=value"."""
    kind = registry.kind_of(name, "retrieval")
    own, given = registry.settings(
        pairs, (kind.config, SequenceTraining), (*registry.OF_DATA, "seed")
    )
    base = training_of(name, protocol)
    return own, registry.checked(SequenceTraining, {**base, **given, "seed": seed})


def training_of(name: str, protocol: str) -> dict[str, Any]:
    """How a model is trained unless told otherwise.

    Protocol A ("user-split") draws users, so that activity does not weigh. The others train on the
    very users that they test: every moment counts, and SASRec learns from all of a user at once.
    """
    if protocol == "user-split":
        return {}
    if name == "sasrec":
        return {"sampling": "sequences", "random_windows": True, "valid_metric": "ndcg@10"}
    return {"sampling": "events", "min_history": 1, "batch_size": 256, "valid_metric": "ndcg@10"}
