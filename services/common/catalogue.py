"""The item table of the current retrieval artifact, followed as new versions are published."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from models import artifact
from models.catalogue import ItemTable
from models.schema.compiled import Schema
from services.common.current_version import CurrentVersion


class CurrentCatalogue(CurrentVersion[ItemTable]):
    """`loaded` is the table in force. Of a version no more is read and verified than that."""

    def __init__(
        self,
        artifacts_dir: Path,
        model: str,
        schema: Schema,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        prepare: Callable[[ItemTable], None] = lambda items: None,
    ) -> None:
        """`prepare` is called with every table before it is in force."""

        def load(folder: Path) -> ItemTable:
            items = artifact.load_items(folder, schema)
            prepare(items)
            return items

        super().__init__(artifacts_dir, model, load, what="catalogue", monotonic=monotonic)
        self._looked_at = monotonic()

    def refresh_if_due(self, period_s: float) -> ItemTable:
        """The table in force, looked up anew when that was `period_s` ago: for worker loops."""
        if self._monotonic() - self._looked_at >= period_s:
            self._looked_at = self._monotonic()
            self.refresh()
        return self.loaded
