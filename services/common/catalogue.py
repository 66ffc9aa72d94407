"""The item table of the current retrieval artifact, followed as new versions are published."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from models import artifact
from models.catalogue import ItemTable

log = structlog.get_logger()


class CurrentCatalogue:
    """`items` is the table in force; a version that cannot be read leaves the last one in force."""

    def __init__(
        self,
        artifacts_dir: Path,
        model: str,
        monotonic: Callable[[], float] = time.monotonic,
        prepare: Callable[[ItemTable], None] = lambda items: None,
    ) -> None:
        """Loads the current version; raises artifact.ArtifactError when there is none.

        `prepare` is called with every table before it is in force.
        """
        self._artifacts_dir, self._model = artifacts_dir, model
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._folder = artifact.current(artifacts_dir, model)
        self._prepare = prepare
        self.items = self._load(self._folder)

    def refresh(self) -> None:
        """Take up a newly published version. Blocking; a few microseconds when nothing is new."""
        self._looked_at = self._monotonic()
        try:
            folder = artifact.current(self._artifacts_dir, self._model)
            if folder != self._folder:
                self.items = self._load(folder)
                self._folder = folder
                log.info("catalogue_loaded", version=folder.name, items=len(self.items))
        except (artifact.ArtifactError, OSError, ValueError) as error:
            log.error("catalogue_refused", error=str(error))

    def refresh_if_due(self, period_s: float) -> ItemTable:
        """The table in force, looked up anew when that was `period_s` ago: for worker loops."""
        if self._monotonic() - self._looked_at >= period_s:
            self.refresh()
        return self.items

    def _load(self, folder: Path) -> ItemTable:
        items = ItemTable.load(folder)
        self._prepare(items)
        return items
