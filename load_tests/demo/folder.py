"""The demo's own folder, and where the features and events of a run are kept."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from services import installation
from services.common.processes.alone import alone
from services.common.settings import Settings
from services.event_log import topics
from services.event_log.connect import connect as connect_log
from services.event_log.interface import LogUnavailable

LEFT_BY_WORKERS = ("experiments.json", "experiments.fold", "experiments.states.json")
OWN = ".tandem-demo"  # marks run_dir/demo as ours to delete; locked while a demo runs


class Urls(NamedTuple):
    """Where features and events are kept, by section of the settings; None: on this disk."""

    feature_store: str | None = None
    event_log: str | None = None


class DemoError(Exception):
    """The demo cannot start; the message says what to do."""


@contextlib.contextmanager
def demo_folder(run_dir: Path) -> Iterator[Path]:
    """The empty folder of this run's features and events; nothing else runs in run_dir."""
    folder = run_dir / "demo"
    marker = folder / OWN
    if folder.is_dir() and any(folder.iterdir()) and not marker.exists():
        raise DemoError(f"{folder} is not a demo's: move it away or set TANDEM_RUN_DIR")
    with alone(run_dir, installation.ALL):
        folder.mkdir(exist_ok=True)
        marker.touch()
        for old in folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old != marker:
                old.unlink()
        for name in LEFT_BY_WORKERS:  # of the last run's events
            (run_dir / name).unlink(missing_ok=True)
        yield folder


def with_stores(settings: Settings, folder: Path, urls: Urls) -> Settings:
    """The settings with the feature store and event log that were named, or new embedded ones."""
    whole = folder.resolve()
    own = Urls(f"lmdb://{whole}/features", f"log://{whole}/events")
    settings = changed(settings, "catalogue", folder=whole / "catalogue")
    for section in Urls._fields:
        url = getattr(urls, section) or getattr(own, section)
        settings = changed(settings, section, url=url)
    return settings


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    """The settings with these values in a section."""
    new = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: new})


def check_log_empty(settings: Settings) -> None:
    """DemoError if it holds records (the demo counts everything that it finds as its own), or
    cannot be used."""
    try:
        with contextlib.closing(connect_log(settings.event_log, settings.installation)) as log:
            for topic in (topics.FEEDBACK, topics.DECISIONS, topics.EXPERIMENTS):
                if any(log.end_offsets(topic)):
                    raise DemoError(
                        f"topic {topic!r} of the event log holds records: delete its topics, or"
                        " name another log"
                    )
    except (LogUnavailable, ValueError) as error:
        raise DemoError(str(error)) from None


def environment(settings: Settings) -> dict[str, str]:
    """What makes the services use the same."""
    return {
        "TANDEM_FEATURE_STORE__URL": settings.feature_store.url,
        "TANDEM_EVENT_LOG__URL": settings.event_log.url,
        "TANDEM_CATALOGUE__FOLDER": str(settings.generations_dir),
        "TANDEM_ROUTER__EXPERIMENTS_FILE": str(settings.router.experiments_file),
        "TANDEM_CANDIDATE_GENERATION__MODELS": json.dumps(settings.candidate_generation.models),
        "TANDEM_RANKING__MODELS": json.dumps(settings.ranking.models),
        "TANDEM_EXPERIMENTS__REPORT_EVERY_S": "1",  # a demo lasts minutes
    }
