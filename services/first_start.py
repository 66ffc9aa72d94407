"""What `tandem serve` does in an owner's folder before its first answer, and what it says of a
folder that lacks something.

* Imported items that were never in the catalogue are brought into it; the demo's films, where no
  schema.yaml is named.
* Models of which there is no version get one that has learned nothing (`models/cold_start.py`), of
  all imported items; also again, as long as nothing is trained, when other items were imported.
* A feature store that is new is filled with what was imported; one that is in use is left alone.

They do nothing where they have been done. A single role (`tandem serve router`) does none of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from feature_store.interface import FeatureStoreUnavailable
from models import artifact
from models.data.errors import DataError
from models.data.own.facts import number_of_rows
from models.data.own.store import DATA, SCHEMA, path_of
from models.data.worlds.films import dataset as films
from models.schema.inputs import Part
from services import installation
from services.catalogue.builder import NotBuilding
from services.catalogue.feeding import bring
from services.catalogue.follower import catalogue_now
from services.catalogue.main import builder_of
from services.common.own_data import digest_of, folder_of, own_tables
from services.common.rpc import Refusal
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.connect import connect
from services.event_log.interface import LogSaturated, LogUnavailable
from services.feedback.rebuild import FOLDED, UpdaterRuns, rebuild_all, told
from services.feedback.store_log import imported_into, is_new, open_store

# What a person can put right, told in one sentence.
EXPECTED = (
    *installation.EXPECTED,
    DataError,
    LogSaturated,
    LogUnavailable,
    NotBuilding,
    Refusal,
    UpdaterRuns,
)

Say = Callable[[str], None]

LEAD_S = 30.0  # for who built the catalogue before, and was killed, to be missed
FILMS, FILMS_MS = 1, 1  # their digest; whatever else is said of a film is newer


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


def first_items(settings: Settings, say: Say) -> None:
    """Bring imported items that were never in the catalogue, where this state of the table has not
    been brought before. Of the others the catalogue is right: they may have been changed or taken
    out since. Raises EXPECTED."""
    with contextlib.closing(connect(settings.event_log, settings.installation)) as event_log:
        known = catalogue_now(settings, event_log)
        coming = _imported_items(settings, known.imported, empty=not len(known.items))
        if coming is None:
            return
        builder, give_up = builder_of(settings, event_log), threading.Event()
        timer = threading.Timer(LEAD_S, give_up.set)
        timer.start()
        try:
            if not builder.lead(give_up):
                say(
                    "[bold yellow]degraded:[/] another process builds the catalogue, so that the"
                    " imported items are not brought in: `tandem items upsert` does it"
                )
                return
            declaration = schema_of(settings).declaration
            done = bring(builder, coming.items, declaration, coming.at_ms)
            builder.set_imported(coming.digest)
        finally:
            timer.cancel()
            builder.close()
    say(f"{done.new:,} imported items brought into the catalogue")
    if done.other:
        say(
            f"[bold yellow]{done.other:,} imported items[/] are otherwise in the catalogue, which"
            " holds: `tandem items upsert FILE` changes them"
        )


class _Coming(NamedTuple):
    items: pl.DataFrame
    digest: int
    at_ms: int  # when they became so


def _imported_items(settings: Settings, brought: int, empty: bool) -> _Coming | None:
    """What is to be brought into a catalogue (`empty`: without items), where the items of the
    digest `brought` were; None: nothing. DataError."""
    folder = folder_of(settings)
    if folder is None:
        if not empty:
            return None
        try:
            items = films.served_films()
        except DataError:  # an installed Tandem has none: somebody brings what can be shown
            return None
        return _Coming(items, FILMS, FILMS_MS)
    digest = digest_of(folder, "items")
    if digest in (0, brought):
        return None
    items = own_tables(settings, folder, ["items"]).items.collect()
    return _Coming(items, digest, int(time.time() * 1000))


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
