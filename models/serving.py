"""From a published folder to a model that can answer: the loaders of the two services.

A model and its own item table come from one folder, so they can never be of different versions.
What it is served over is another table, if there is one: that of the catalogue, whose states it
follows (`models/rows.py`). Everything is verified before anything is built, and no number that is
served from may be NaN or infinite: checksums confirm a broken training, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from models import cold_start
from models.artifact import WEIGHTS, Artifact, ArtifactError, load_verified
from models.catalogue import ItemTable
from models.ranking.interface import Ranker
from models.registry import Part, UnknownModel, kind_of
from models.retrieval.interface import RetrievalModel
from models.rows import changed_rows, put, rows_in, with_room
from models.schema.compiled import Schema
from models.schema.inputs import Reads

Model = TypeVar("Model", RetrievalModel, Ranker)


@dataclass(eq=False)
class Loaded(ABC, Generic[Model]):
    """A model in eval mode, served over the rows of `items`; `known` is its own table. One thread
    uses it."""

    model: Model
    known: ItemTable
    items: ItemTable
    version: str
    name: str

    def __post_init__(self) -> None:
        self._take_all()

    @property
    @abstractmethod
    def trained(self) -> bool:
        """Whether it has learned anything of its domain."""

    # Answers are computed in inference mode, whose tensors nobody may change outside of it, and in
    # a precision of their own.
    @torch.inference_mode(False)
    @torch.no_grad()
    def follow(self, items: ItemTable) -> None:
        """Be served over a later state of the catalogue, at the cost of what has changed. Answers
        are then, to the last bit, those of a version that was loaded over that state."""
        with torch.autocast(self.model.device.type, enabled=False):
            # Of a table of its own nothing is known beside the catalogue's.
            own = self.items is self.known
            rows = None if own else changed_rows(self.items, items)
            if rows is None or not self.model.follow_items(items, self.known, rows):
                self.model.load_items(items, self.known)
                self.items = items
                self._take_all()
            elif len(rows):
                self._take(items, rows)
            self.items = items

    @abstractmethod
    def _take_all(self) -> None:
        """Compute what answers are made of, of all `items`."""

    @abstractmethod
    def _take(self, items: ItemTable, rows: np.ndarray) -> None:
        """Compute it of these rows int64[N] of `items`, among which are all new ones."""


@dataclass(eq=False)
class LoadedRetrieval(Loaded[RetrievalModel]):
    """`item_vectors` float32[n + 1, d] and `hidden` bool[n + 1] are on the model's device. Hidden
    are the unknown item and those that have been removed or have no place."""

    item_vectors: torch.Tensor = field(init=False)
    hidden: torch.Tensor = field(init=False)
    hidden_rows: torch.Tensor = field(init=False)  # int64, ascending

    @property
    def trained(self) -> bool:
        return self.model.source != cold_start.NAME

    def _take(self, items: ItemTable, rows: np.ndarray) -> None:
        vectors, count = self.model.item_vectors(rows), len(items) + 1
        hidden = self._hides(items, rows, vectors)
        self.item_vectors = put(self.item_vectors, rows, vectors, count)
        self._hide(put(self.hidden, rows, hidden, count))

    def _take_all(self) -> None:
        vectors = self.model.item_vectors()
        self.item_vectors = vectors if self.items is self.known else with_room(vectors)
        every = np.arange(len(self.items) + 1)
        self._hide(self._hides(self.items, every, self.item_vectors))

    def _hides(self, items: ItemTable, rows: np.ndarray, vectors: torch.Tensor) -> torch.Tensor:
        """bool[N]: which of these rows of `items` are not to be found. One whose fields make no
        finite vector would be found before all others."""
        places = self.model.places(torch.from_numpy(rows).to(vectors.device))
        removed = torch.from_numpy(items.removed[rows]).to(vectors.device)
        return removed | ~places | ~vectors.isfinite().all(1)

    def _hide(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden
        found = np.flatnonzero(hidden.cpu().numpy())
        self.hidden_rows = torch.from_numpy(found).to(hidden.device)


@dataclass(eq=False)
class LoadedRanking(Loaded[Ranker]):
    """`unknown` bool[n + 1]: of which items the model can tell nothing."""

    unknown: np.ndarray = field(init=False)

    @property
    def trained(self) -> bool:
        return not isinstance(self.model, cold_start.ColdStart)

    def _take(self, items: ItemTable, rows: np.ndarray) -> None:
        unknown = torch.from_numpy(self.unknown)
        self.unknown = put(unknown, rows, self._unknown(rows), len(items) + 1).numpy()

    def _take_all(self) -> None:
        self.model.prepare_serving()
        self.unknown = self._unknown(np.arange(len(self.items) + 1)).numpy()

    def _unknown(self, rows: np.ndarray) -> torch.Tensor:
        """bool[N], on the CPU."""
        return ~self.model.places(torch.from_numpy(rows).to(self.model.device)).cpu()


def load_retrieval(
    folder: Path,
    device: str | torch.device = "cpu",
    schema: Schema | None = None,
    items: ItemTable | None = None,
) -> LoadedRetrieval:
    """Verify and load a retrieval version, which must read what `schema` declares (None: whatever
    it reads), to be served over `items` (None: its own); ArtifactError names what is wrong with
    which file."""
    artifact = load_verified(folder, schema)
    items = artifact.items if items is None else items
    model = _build(artifact, "retrieval", device, items)
    loaded = LoadedRetrieval(model, artifact.items, items, artifact.version, artifact.name)
    vectors = loaded.item_vectors
    learned = torch.from_numpy(np.flatnonzero(rows_in(loaded.known, items))).to(vectors.device)
    if not vectors.isfinite().all(1)[learned].all():
        raise ArtifactError(f"{folder / WEIGHTS}: makes NaN or infinity of an item: train again")
    if len(learned) > 1 and (vectors == vectors[learned[0]]).all(1)[learned].all():
        raise ArtifactError(
            f"{folder / WEIGHTS}: all items have one vector, which orders them by nothing: train"
            " again"
        )
    return loaded


def load_ranking(
    folder: Path,
    device: str | torch.device = "cpu",
    schema: Schema | None = None,
    items: ItemTable | None = None,
) -> LoadedRanking:
    """As `load_retrieval`, of a ranking version."""
    artifact = load_verified(folder, schema)
    items = artifact.items if items is None else items
    model = _build(artifact, "ranking", device, items)
    return LoadedRanking(model, artifact.items, items, artifact.version, artifact.name)


def part_of(artifact: Artifact) -> Part:
    """What a version is for. ArtifactError for one of an unknown model."""
    config, where = artifact.config, artifact.folder / "config.json"
    name = str(config.get("model"))
    if name != cold_start.NAME:
        try:
            return kind_of(name).part
        except UnknownModel as error:
            raise ArtifactError(f"{where}: {error}") from error
    ranks = config.get("part") == "ranking"
    if "part" not in config:  # as it was published before: of retrieval with vectors
        ranks = not (artifact.folder / "item_vectors.npy").is_file()
    return "ranking" if ranks else "retrieval"


def _build(artifact: Artifact, part: Part, device: str | torch.device, items: ItemTable) -> Any:
    """The module that the artifact's config names, with its weights, over `items`, in eval mode."""
    where = artifact.folder / "config.json"
    for name, tensor in artifact.tensors.items():
        if not tensor.isfinite().all():
            raise ArtifactError(
                f"{artifact.folder / WEIGHTS}: {name} holds NaN or infinity: train again"
            )
    name, parameters = str(artifact.config.get("model")), artifact.config.get("parameters", {})
    build: Callable[[Mapping[str, Any], Reads], nn.Module]
    if name == cold_start.NAME:
        build = cold_start.build
        if (found := part_of(artifact)) != part:
            raise ArtifactError(f"{where}: is a model of {found}, not of {part}")
    else:
        try:
            build = kind_of(name, part).build
        except UnknownModel as error:
            raise ArtifactError(f"{where}: {error}") from error
    try:
        model: Any = build(parameters, artifact.reads)
        model.load_state_dict(artifact.tensors)
        model.to(device).load_items(items, artifact.items)
    except (TypeError, ValueError, RuntimeError) as error:
        if _out_of_memory(error):
            raise
        raise ArtifactError(f"{where}: weights, config and items disagree ({error})") from error
    return model.eval()


def _out_of_memory(error: Exception) -> bool:
    """Whether torch got no memory, for which the version is not to blame."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
