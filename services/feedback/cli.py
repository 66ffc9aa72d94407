"""`tandem features`: what an operator does to the feature store."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer
from rich.console import Console

from services.common.terminal import fail, load_settings

app = typer.Typer(no_args_is_help=True, help="The feature store.")
console = Console()


@app.callback()
def features() -> None:
    """The feature store."""  # a callback keeps `rebuild` a command of its own


@app.command()
def rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before deleting")] = False,
) -> None:
    """Empty the feature store and make it from all the feedback that the event log retains.

    Stop the updaters first. Lists are made from default features until a user's row is back.
    """
    from feature_store.interface import FeatureStoreUnavailable
    from feature_store.urls import public
    from models import artifact
    from models.artifact import ArtifactError
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
        " days. What is older, and what a backfill has written, will be gone.",
        highlight=False,
    )
    if not yes and not typer.confirm("Delete the features that are there?"):
        raise typer.Exit(1)
    try:
        with contextlib.ExitStack() as opened:
            model = settings.candidate_generation.models[0]
            items = artifact.load_items(
                artifact.current(settings.artifacts_dir, model), schema_of(settings)
            )
            event_log = opened.enter_context(contextlib.closing(connect(settings.event_log)))
            store = opened.enter_context(contextlib.closing(open_store(settings)))
            done = rebuilding.rebuild(settings, store, event_log, items, on_progress=_progress)
    except (rebuilding.UpdaterRuns, StoreRefused, LogWentBack, ArtifactError, ValueError) as error:
        fail(str(error))
    except (FeatureStoreUnavailable, LogUnavailable) as error:
        fail(f"{error}. The store is not whole: run this again")
    console.print(
        f"{done.deleted} rows deleted; {done.records} records read: "
        + ", ".join(f"{n} {outcome}" for outcome, n in sorted(done.outcomes.items()))
        + ". Start the updaters again.",
        highlight=False,
    )


def _progress(read: int, left: int) -> None:
    console.print(f"{read} records read, {left} left", highlight=False)
