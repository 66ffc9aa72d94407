"""All of the catalogue that there is: the newest generation that holds, and the rest of the topic.
Builder and followers begin with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from services.catalogue import generations
from services.catalogue.fold import CatalogueFold
from services.event_log.interface import EventLog, LogWentBack, TopicReader
from services.event_log.topics import ITEMS

log = structlog.get_logger(__name__)

BATCH = 1_000  # records at once
POLL_S = 0.1  # for the next ones, where the topic has some


class Begun(NamedTuple):
    """Where whoever has read all goes on."""

    fold: CatalogueFold
    reader: TopicReader
    loaded: bool  # a generation was there
    went_back: bool  # the generations are of a log that is no more


def begun(
    event_log: EventLog, folder: Path, topic: str, new_fold: Callable[[], CatalogueFold]
) -> Begun:
    """Read a topic of this identity to its end. Raises LogUnavailable, with nothing left open."""
    fold = new_fold()
    loaded = generations.load(folder, fold, topic)
    try:
        return Begun(fold, _read(event_log, fold), loaded, went_back=False)
    except LogWentBack as error:
        log.error("generations_of_another_log", folder=str(folder), cause=str(error))
    fold = new_fold()
    return Begun(fold, _read(event_log, fold), loaded=False, went_back=True)


def fold_to_end(fold: CatalogueFold, reader: TopicReader) -> None:
    """Fold what a reader has not read yet. Raises LogUnavailable and LogWentBack."""
    while not reader.caught_up():
        fold.fold(reader.poll(BATCH, POLL_S))


def _read(event_log: EventLog, fold: CatalogueFold) -> TopicReader:
    reader = event_log.reader(ITEMS, {0: fold.offset})
    try:
        fold_to_end(fold, reader)
    except BaseException:
        reader.close()
        raise
    return reader
