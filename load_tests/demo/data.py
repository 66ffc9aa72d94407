"""What the demo needs before anything runs: models, and a feature store filled with the past."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.demo.training import TrainingFailed, Wanted, cores, train
from models import artifact
from models.artifact import Artifact, ArtifactError
from models.catalogue import ItemTable
from models.data.backfill import FeatureState
from models.data.events import Dataset
from models.data.worlds.films.schema import SCHEMA
from models.serving import load_ranking, load_retrieval
from models.training.metrics import Estimate
from models.training.pipeline import data_window, show_quality
from services.common.feature_store import store_of
from services.common.settings import Settings
from services.feedback import backfill as past


def train_or_reuse(settings: Settings, dataset: Dataset, retrain: bool, console: Console) -> None:
    """Publish the models to be served, or say which of those published are; prints their quality.

    `dataset` is the bundled one. Raises TrainingFailed.
    """
    artifacts_dir = settings.artifacts_dir
    wanted = [
        *(Wanted("retrieval", name) for name in settings.candidate_generation.models),
        *(Wanted("ranking", name) for name in settings.ranking.models),
    ]
    found = {} if retrain else {w: published(artifacts_dir, dataset, w) for w in wanted}
    if reused := [a for a in found.values() if a is not None]:
        console.print(
            f"Using the models published in {artifacts_dir} ([cyan]--retrain[/] makes new ones): "
            + ", ".join(f"{a.name} {a.version}" for a in reused),
            highlight=False,
        )
    if missing := [w for w in wanted if found.get(w) is None]:
        at_once = min(len(missing), cores())
        missing.sort(key=lambda w: w.part == "retrieval")  # what takes longer begins first
        names = ", ".join(w.name for w in missing)
        console.print(f"Training {names}, {at_once} at a time", highlight=False)
        seconds = train(missing, artifacts_dir, console)
        console.print(f"Trained and published in {seconds:.0f} s", highlight=False)
    artifacts = {w: found.get(w) or published(artifacts_dir, dataset, w) for w in wanted}
    if unusable := [w.name for w, artifact in artifacts.items() if artifact is None]:
        raise TrainingFailed(f"trained, but not to be loaded: {', '.join(unusable)}")
    retrieval, ranking = (
        [a for w, a in artifacts.items() if a is not None and w.part == part]
        for part in ("retrieval", "ranking")
    )
    recall = side_by_side(retrieval, "recall_at_50")
    show_quality(
        {name: Estimate(**values) for name, values in recall.items()},
        side_by_side(ranking, "quality"),
        console,
    )


def published(artifacts_dir: Path, dataset: Dataset, wanted: Wanted) -> Artifact | None:
    """The current artifact, if it is whole, fits this code and was made from this data."""
    load = load_retrieval if wanted.part == "retrieval" else load_ranking
    try:
        folder = artifact.current(artifacts_dir, wanted.name)
        found = artifact.load_verified(folder)
        load(folder)
    except ArtifactError:
        return None
    return found if found.data_window == data_window(dataset) else None


def side_by_side(artifacts: Sequence[Artifact], metric: str) -> dict[str, Any]:
    """A metric as the artifacts tell it: the models in their order, then their baselines."""
    own = {a.name: a.metrics[metric][a.name] for a in artifacts}
    return own | {
        name: value
        for a in artifacts
        for name, value in a.metrics[metric].items()
        if name not in own
    }


def backfill(settings: Settings, items: ItemTable, state: FeatureState) -> int:
    """Write a state's rows into the store; the number of users and items. NotEmpty if the store
    holds rows."""
    store = store_of(settings)
    ids = dict(zip(items.keys.tolist(), items.ids, strict=True))
    try:
        written = past.write(store, past.users_of(SCHEMA, state))
        return written + past.write(store, past.items_of(SCHEMA, state, ids))
    finally:
        store.close()
