"""What the demo needs before anything runs: models, and a feature store filled with the past."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from feature_store.codec import guarded_write
from feature_store.connect import connect
from feature_store.interface import GuardedWrite
from models import artifact
from models.artifact import Artifact, ArtifactError
from models.catalogue import ItemTable
from models.data.backfill import FeatureState
from models.data.events import Dataset
from models.schema import COUNTERS, HISTORY, ITEM_DELIVERY, PROFILE, USER_DELIVERY
from models.serving import load_ranking, load_retrieval
from models.training.metrics import Estimate
from models.training.pipeline import data_window, show_quality, train_all
from services.common.settings import FeatureStoreSettings

WRITE_CHUNK = 500  # entities per transaction


def train_or_reuse(artifacts_dir: Path, dataset: Dataset, retrain: bool, console: Console) -> None:
    """Publish both models, or say that those published are used; prints their quality."""
    found = None if retrain else published(artifacts_dir, dataset)
    if found is None:
        train_all(artifacts_dir, console, dataset=dataset)
        return
    two_tower, masknet = found
    console.print(
        f"Using the models published in {artifacts_dir} ([cyan]--retrain[/] makes new ones):"
        f" {two_tower.name} {two_tower.version}, {masknet.name} {masknet.version}",
        highlight=False,
    )
    recall = {k: Estimate(**v) for k, v in two_tower.metrics["recall_at_50"].items()}
    auc = masknet.metrics["auc"]
    # Stored sorted by name; ours go first.
    show_quality(
        {two_tower.name: recall[two_tower.name], **recall},
        {masknet.name: auc[masknet.name], **auc},
        console,
    )


def published(artifacts_dir: Path, dataset: Dataset) -> tuple[Artifact, Artifact] | None:
    """The current artifacts, if they are whole, fit this code and were made from this data."""
    try:
        folders = [artifact.current(artifacts_dir, name) for name in ("ssl_two_tower", "masknet")]
        two_tower, masknet = (artifact.load_verified(folder) for folder in folders)
        load_retrieval(two_tower.folder)
        load_ranking(masknet.folder)
    except ArtifactError:
        return None
    window = data_window(dataset)
    same = two_tower.data_window == window and masknet.data_window == window
    return (two_tower, masknet) if same else None


def backfill(settings: FeatureStoreSettings, items: ItemTable, state: FeatureState) -> int:
    """Write a state's rows into the store; the number of users and items.

    The delivery rows that guard them are new: the demo's event log begins empty.
    """
    store = connect(
        settings.url,
        timeout_ms=settings.timeout_ms,
        lmdb_map_size_mb=settings.lmdb_map_size_mb,
    )
    try:
        writes = list(rows_of(items, state))
        for start in range(0, len(writes), WRITE_CHUNK):
            store.write(writes[start : start + WRITE_CHUNK])
    finally:
        store.close()
    return len(writes)


def rows_of(items: ItemTable, state: FeatureState) -> Iterator[GuardedWrite]:
    """A state as first writes of its users' and items' rows."""
    for user_id, user in state.users.items():
        yield guarded_write(
            user_id,
            USER_DELIVERY,
            0,
            {
                USER_DELIVERY.name: user.delivery,
                PROFILE.name: user.profile,
                HISTORY.name: user.history,
            },
            int(user.profile["last_event_ms"]),
        )
    ids = dict(zip(items.keys.tolist(), items.ids, strict=True))
    for key, item in state.items.items():
        yield guarded_write(
            ids[key],
            ITEM_DELIVERY,
            0,
            {ITEM_DELIVERY.name: item.delivery, COUNTERS.name: item.counters},
            int(item.counters["as_of_ms"]),
        )
