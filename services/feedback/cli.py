"""`tandem features`: what an operator does to the feature store."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from services.common.terminal import fail, load_settings

if TYPE_CHECKING:
    from models.data.own.tables import OwnTables
    from models.schema.compiled import Schema

app = typer.Typer(no_args_is_help=True, help="The feature store.")
console = Console()


@app.callback()
def features() -> None:
    """The feature store."""  # a callback keeps `rebuild` a command of its own


@app.command()
def rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before deleting")] = False,
    data: Annotated[
        Path | None, typer.Option(help="folder with imported tables, which count before the log")
    ] = None,
) -> None:
    """Empty the feature store and make it from all the feedback that the event log retains.

    With --data what was imported comes first; an event that is in both counts twice. Stop the
    updaters first. Lists are made from default features until a user's row is back.
    """
    from feature_store.interface import FeatureStoreUnavailable
    from feature_store.urls import public
    from models import artifact
    from models.artifact import ArtifactError
    from models.data.errors import DataError
    from services.common.schema import schema_of
    from services.common.telemetry import configure_logging
    from services.event_log.connect import connect
    from services.event_log.interface import LogUnavailable, LogWentBack
    from services.feedback import rebuild as rebuilding
    from services.feedback.source import StoreRefused, open_store

    settings = load_settings()
    configure_logging("warning", "console")
    where, log = public(settings.feature_store.url), public(settings.event_log.url)
    days = settings.event_log.retention_days
    console.print(
        f"Makes the features in {where} from the feedback in {log}, which keeps it for {days:g}"
        " days"
        + (
            ". What is older, and was written otherwise, will be gone."
            if data is None
            else f", and from what was imported into {data}."
        ),
        highlight=False,
    )
    if not yes and not typer.confirm("Delete the features that are there?"):
        raise typer.Exit(1)
    try:
        with contextlib.ExitStack() as opened:
            own = None if data is None else _own(data, schema_of(settings))
            model = settings.candidate_generation.models[0]
            items = artifact.load_items(
                artifact.current(settings.artifacts_dir, model), schema_of(settings)
            )
            event_log = opened.enter_context(
                contextlib.closing(connect(settings.event_log, settings.installation))
            )
            store = opened.enter_context(contextlib.closing(open_store(settings)))
            done = rebuilding.rebuild(
                settings, store, event_log, items, own=own, on_progress=_progress
            )
    except (
        DataError,
        rebuilding.UpdaterRuns,
        StoreRefused,
        LogWentBack,
        ArtifactError,
        ValueError,
    ) as error:
        fail(str(error))
    except (FeatureStoreUnavailable, LogUnavailable) as error:
        fail(f"{error}. The store is not whole: run this again")
    console.print(
        f"{done.deleted} rows deleted; {done.imported} users and items imported; "
        f"{done.records} records read: "
        + ", ".join(f"{n} {outcome}" for outcome, n in sorted(done.outcomes.items()))
        + ". Start the updaters again.",
        highlight=False,
    )


def _own(folder: Path, schema: Schema) -> OwnTables:
    """The imported tables of a folder. DataError unless they are of the settings' domain."""
    from models.data.errors import DataError
    from models.data.own.tables import tables

    own = tables(folder)
    if own.schema.declaration != schema.declaration:
        raise DataError(
            f"{folder}/schema.yaml is not what these settings use: set schema_file to it"
            " (TANDEM_SCHEMA_FILE)"
        )
    return replace(own, schema=schema)


def _progress(read: int, left: int) -> None:
    console.print(f"{read} records read, {left} left", highlight=False)
