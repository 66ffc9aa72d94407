"""The catalogue as a process follows it: the last generation, and then the topic, record by record.

`items` is the state in force: take it once per answer. It is as fresh as the topic, whether or not
anybody builds: a builder is needed for changes, and generations only make the start short.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import structlog
from prometheus_client import Counter

from models.catalogue import ItemTable
from models.schema.compiled import Schema
from services.catalogue.fold import CatalogueFold
from services.catalogue.reading import BATCH, begun
from services.common.schema import schema_of
from services.common.settings import Settings
from services.common.telemetry import OwnedGauge
from services.event_log.connect import connect
from services.event_log.interface import EventLog, LogUnavailable, LogWentBack, TopicReader
from services.event_log.topics import ITEMS

log = structlog.get_logger(__name__)

POLL_S = 0.2  # the longest that an end waits for
RETRY_S = 1.0  # after the log did not answer

ITEMS_IN_FORCE = OwnedGauge(
    "tandem_catalogue_items",
    "Items in the catalogue as this process has it, the removed ones not counted.",
)
AGE = OwnedGauge(
    "tandem_catalogue_behind_seconds",
    "Since when this process has not been at the end of topic items: while it grows, items that"
    " were removed may be shown.",
)
BEGUN_ANEW = Counter(
    "tandem_catalogue_begun_anew_total",
    "Times that the catalogue was read anew because its topic was another one: more than none means"
    " that a log was replaced.",
)


def fields_looked_at(schema: Schema) -> frozenset[str]:
    """The items' fields that are looked at without a model: by affinities and for diversity."""
    return frozenset({*schema.fold.item_fields, schema.declaration.diversity} - {""})


class NoItems(Exception):
    """The catalogue holds no item yet."""


class CatalogueFollower:
    """`begin` and `step` on one thread, or `start` on its own; `items` may be read by any."""

    def __init__(
        self,
        event_log: EventLog,
        folder: Path,
        schema: Schema,
        fields: Collection[str] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` holds the generations; `fields` are those that this process reads, all unless
        given. Reads nothing yet."""
        self.event_log, self._folder, self._schema = event_log, folder, schema
        self._fields, self._monotonic = fields, monotonic
        self._reader: TopicReader | None = None
        self._fold = self._new_fold()
        self._at_end = monotonic()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.items = self._fold.table.items

    @property
    def imported(self) -> int:
        """See `Now`."""
        return self._fold.imported

    @property
    def there(self) -> bool:
        """Whether there is any item that can be shown."""
        return not self.items.removed[1:].all()

    def begin(self) -> None:
        """Read all there is. Raises LogUnavailable."""
        self.close_reader()
        topic = self.event_log.identity(ITEMS)
        found = begun(self.event_log, self._folder, topic, self._new_fold)
        self._fold, self._reader = found.fold, found.reader
        self._show()

    def begin_with_items(self) -> None:
        """`begin`, and NoItems where no item is there: for who judges events by them."""
        self.begin()
        if not self.there:
            raise NoItems("no item is there: `tandem items sync FILE` brings some")

    def _new_fold(self) -> CatalogueFold:
        return CatalogueFold(self._schema, self._fields)

    def step(self, timeout_s: float = POLL_S) -> bool:
        """Take what has come, waiting up to `timeout_s` for it; whether anything had. Raises
        LogUnavailable."""
        if self._reader is None:
            self.begin()
            return True
        try:
            batch = self._reader.poll(BATCH, timeout_s)
            self._fold.fold(batch)
        except LogUnavailable:
            raise
        except LogWentBack as error:
            log.error("catalogue_replaced", cause=str(error), rows=len(self.items))
            BEGUN_ANEW.inc()
            self.begin()
            return True
        except BaseException:
            self.close_reader()  # what was read is not folded: the next step begins anew
            raise
        if len(batch) < BATCH:
            self._at_end = self._monotonic()
        if self._fold.table.items is not self.items:
            self._show()
        return bool(batch)

    def start(self) -> None:
        """Follow on a thread of its own until `close`."""
        AGE.set_function(lambda: self._monotonic() - self._at_end)
        self._thread = threading.Thread(target=self._follow, name="catalogue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and the reading. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.close_reader()

    def close_reader(self) -> None:
        """Release what is held open of the log."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _follow(self) -> None:
        told = ""
        while not self._stop.is_set():
            try:
                self.step()
                told = ""
            except Exception as error:  # what is in force stays in force, whatever it is
                expected = isinstance(error, LogUnavailable)
                if str(error) != told:
                    log.error(
                        "catalogue_not_followed", cause=str(error),
                        exc_info=None if expected else error,
                    )  # fmt: skip
                told = str(error)
                self._stop.wait(RETRY_S)

    def _show(self) -> None:
        state = self._fold.table.items
        self.items = state
        ITEMS_IN_FORCE.set(len(state) - int(state.removed[1:].sum()))


def follower_of(
    settings: Settings, event_log: EventLog, fields: Collection[str] | None = None
) -> CatalogueFollower:
    """The catalogue of an installation; the rest is as CatalogueFollower has it."""
    schema = schema_of(settings)
    return CatalogueFollower(event_log, settings.generations_dir, schema, fields)


async def followed(settings: Settings, poll_s: float) -> CatalogueFollower:
    """The catalogue with all fields, followed on a thread of its own, as soon as there is an item
    in it, which is looked for every `poll_s` seconds. It has a log of its own."""
    event_log = connect(settings.event_log, settings.installation)
    follower = follower_of(settings, event_log)
    follower.start()
    told = False
    try:
        while not follower.there:
            if not told:
                log.info("catalogue_awaited", reason="no item is there: `tandem items sync FILE`")
                told = True
            await asyncio.sleep(poll_s)
    except BaseException:  # told to end
        follower.close()
        event_log.close()
        raise
    return follower


class Now(NamedTuple):
    """The catalogue at one moment."""

    items: ItemTable
    imported: int  # digest of the imported items that are all in; 0: none were brought so


def catalogue_now(settings: Settings, event_log: EventLog) -> Now:
    """The catalogue as it is, with what is looked at without a model. Raises LogUnavailable."""
    follower = follower_of(settings, event_log, fields_looked_at(schema_of(settings)))
    with contextlib.closing(follower):
        follower.begin()
    return Now(follower.items, follower.imported)
