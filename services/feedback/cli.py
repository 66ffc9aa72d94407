"""`tandem features`: what an operator does to the feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.common.terminal import fail, load_settings, plain

app = typer.Typer(no_args_is_help=True, help="The feature store.")
console = Console()


@app.callback()
def features() -> None:
    """The feature store."""  # a callback keeps `rebuild` a command of its own


@app.command()
def rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before deleting")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="folder with imported tables, which count before the log",
            show_default="that of schema_file",
        ),
    ] = None,
) -> None:
    """Empty the feature store and make it from what was imported and from all the feedback that the
    event log retains.

    An event that is in both counts once. Stop the updaters first. Lists are made from default
    features until a user's row is back.
    """
    from feature_store.interface import FeatureStoreUnavailable
    from feature_store.urls import public
    from models.data.errors import DataError
    from models.data.own.store import DATA
    from services.common.own_data import folder_of
    from services.common.schema import SchemaRefused
    from services.common.telemetry import configure_logging
    from services.event_log.interface import LogUnavailable, LogWentBack
    from services.feedback import rebuild as rebuilding
    from services.feedback.store_log import StoreRefused

    settings = load_settings()
    configure_logging("warning", "console")
    data = data or folder_of(settings)
    where, log = public(settings.feature_store.url), public(settings.event_log.url)
    days = settings.event_log.retention_days
    console.print(
        f"Makes the features in {where} from the feedback in {log}, which keeps it for {days:g}"
        " days"
        + (
            ". What is older, and was written otherwise, will be gone."
            if data is None
            else f", and from what was imported into {data / DATA}."
        ),
        highlight=False,
    )
    if not yes and not typer.confirm("Delete the features that are there (--yes does not ask)?"):
        raise typer.Exit(1)
    try:
        done = rebuilding.rebuild_all(settings, data, _progress)
    except (
        DataError,
        rebuilding.UpdaterRuns,
        SchemaRefused,
        StoreRefused,
        LogWentBack,
        ValueError,
    ) as error:
        fail(str(error))
    except (FeatureStoreUnavailable, LogUnavailable) as error:
        fail(f"{error}. The store is not whole: run this again")
    for line in rebuilding.told(done):
        console.print(plain(line), highlight=False)
    console.print("Start the updaters again.")


def _progress(read: int, left: int) -> None:
    console.print(f"{read} records read, {left} left", highlight=False)
