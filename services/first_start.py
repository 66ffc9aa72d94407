"""What `tandem serve` does in an owner's folder before its first answer, and what it says of a
folder that lacks something.

* Models of which there is no version get one that has learned nothing (`models/cold_start.py`), of
  all imported items; also again, as long as nothing is trained, when other items were imported.
* A feature store that is new is filled with what was imported; one that is in use is left alone.

Both do nothing where they have been done. A single role (`tandem serve router`) does neither.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from feature_store.interface import FeatureStoreUnavailable
from models import artifact
from models.data.errors import DataError
from models.data.own.facts import number_of_rows
from models.data.own.store import DATA, SCHEMA, path_of
from models.schema.inputs import Part
from services import installation
from services.common.own_data import digest_of, folder_of, own_tables
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.interface import LogUnavailable
from services.feedback.rebuild import FOLDED, UpdaterRuns, rebuild_all, told
from services.feedback.store_log import imported_into, is_new, open_store

# What a person can put right, told in one sentence.
EXPECTED = (*installation.EXPECTED, DataError, LogUnavailable, UpdaterRuns)

Say = Callable[[str], None]


def check_folder(settings: Settings) -> None:
    """Raise CannotStart where nothing can be served yet, saying what to bring."""
    if missing := what_to_bring(settings):
        raise installation.CannotStart(missing)


def what_to_bring(settings: Settings) -> str:
    """What the folder lacks before anything can be served from it, and the next command; "" for
    nothing."""
    here, file = Path.cwd(), Path(os.environ.get("TANDEM_SETTINGS", "tandem.yaml"))
    if settings.schema_file is None and not file.is_file():
        if Path(SCHEMA).is_file():
            return (
                f"{here} has a {SCHEMA}, and no tandem.yaml that names it: write one with"
                f" `schema_file: {SCHEMA}`, and an experiments.yaml beside it (`tandem init NAME`"
                " writes examples of both)"
            )
        if not settings.router.experiments_file.exists():
            return (
                f"{here} is no installation: `tandem init NAME` writes one to begin from, with a"
                f" {SCHEMA}, settings and example files (docs/own-data.md); or go to yours"
            )
    folder = folder_of(settings)
    if folder is not None and not path_of(folder, "items").is_file() and _to_begin(settings, 0):
        return (
            f"{folder / DATA} holds no items, and not every model is trained: `tandem import items"
            " FILE` brings what can be shown, which is served at once; with events, too (`tandem"
            " import events FILE`), `tandem train all` learns from them"
        )
    return ""


def first_models(settings: Settings, say: Say) -> None:
    """Publish a version that has learned nothing of each model to serve that has none, or one of
    other items that has learned nothing. DataError for items that cannot be used."""
    folder = folder_of(settings)
    digest = 0 if folder is None else digest_of(folder, "items")
    if folder is None or not digest:
        return
    digest ^= schema_of(settings).digest
    beginning = _to_begin(settings, digest)
    if not beginning:
        return
    # Imported here: torch takes 300 MB, which a supervisor of trained models is spared.
    from models import cold_start
    from models.data.own.newest import newest_first

    own = own_tables(settings, folder, ["items"])
    items = newest_first(own.schema, own.items.collect(), int(time.time() * 1000))
    window = {"dataset": folder.resolve().name, "items": f"{digest:016x}"}
    begun = []
    for part, name in beginning:
        still = functools.partial(_begins, settings, name, digest)
        with contextlib.suppress(artifact.Overtaken):  # a training has ended meanwhile
            cold_start.publish(settings.artifacts_dir, name, part, own.schema, items, window, still)
            begun.append(name)
    if not begun:
        return
    names = ", ".join(begun)
    say(
        f"[bold yellow]no model yet:[/] {names}: {len(items):,} items are served by what is new,"
        " popular and like a user's choices; `tandem train all` makes models of imported"
        " events, which are taken up while this runs"
    )


def _to_begin(settings: Settings, digest: int) -> list[tuple[Part, str]]:
    """The models that `_begins` holds for."""
    models = installation.models_of(settings)
    return [(part, name) for part, name in models if _begins(settings, name, digest)]


def _begins(settings: Settings, name: str, digest: int) -> bool:
    """Whether nothing is published of a model, or a cold start of other items than those of
    `digest`."""
    if not (settings.artifacts_dir / name / "current.json").is_file():
        return True
    with contextlib.suppress(artifact.ArtifactError, OSError, ValueError):
        version = artifact.current(settings.artifacts_dir, name)
        window = json.loads((version / artifact.DATA_WINDOW).read_text())
        return bool(window.get("items", f"{digest:016x}") != f"{digest:016x}")
    return False


def first_features(settings: Settings, say: Say) -> None:
    """Fill a feature store that is new with what was imported; of one that is in use and was filled
    with something else, say so. Raises as `rebuild_all`."""
    folder = folder_of(settings)
    digest = 0 if folder is None else digest_of(folder, *FOLDED)
    if folder is None or not digest:
        return
    try:
        with contextlib.closing(open_store(settings)) as store:
            there = imported_into(store)
            new = there is None and is_new(store, settings)
    except FeatureStoreUnavailable as error:
        say(f"[bold yellow]degraded:[/] whether users begin with what was imported: {error}")
        return
    if new:
        events = path_of(folder, "events")
        count = number_of_rows(events) if events.is_file() else 0
        say(
            f"folding {count:,} imported events into the feature store, about a million a minute;"
            " broken off, `tandem features rebuild` does it anew"
        )
        for line in told(rebuild_all(settings, folder)):
            say(line)
    elif there is None:
        say(
            f"[bold yellow]degraded:[/] it is not known whether the features hold what was imported"
            f" into {folder / DATA}: the feature store is in use, and does not say. To be sure, end"
            " this, and run `tandem features rebuild`"
        )
    elif there != digest:
        say(
            f"[bold yellow]degraded:[/] the features lack what was imported into {folder / DATA}"
            " since they were made: end this, and run `tandem features rebuild`"
        )
