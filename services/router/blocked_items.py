"""The items that nobody is shown: a file of ids, followed while the router runs."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog

from models.catalogue import ItemTable, item_key

log = structlog.get_logger()

NAMED = 5  # ids told in a log line


class BlockedItems:
    """Keys of the items that nobody is shown, ascending: one id per line of a file, followed.

    A list of this kind must not fail silently: it is read as editors and spreadsheets write it
    (byte-order mark, UTF-16, quotes, empty columns), how many ids it holds is logged, and so is
    which of them are in no catalogue.
    """

    def __init__(self, path: Path | None, items: Callable[[], ItemTable] | None = None) -> None:
        """OSError or ValueError when it cannot be read: nothing would be blocked."""
        self._path = path
        self._items = items
        self._bytes = b""
        self.keys = np.zeros(0, np.uint64)
        if path is not None:
            self._read(path)

    def refresh(self) -> None:
        if self._path is None:
            return
        try:
            self._read(self._path)
        except (OSError, ValueError) as error:  # keep blocking what was blocked
            log.error("blocked_items_unreadable", error=str(error))

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        if content == self._bytes:
            return
        forms = [_forms(line) for line in _text(content).splitlines() if line.strip()]
        keys = [np.array([item_key(form) for form in of_line], np.uint64) for of_line in forms]
        self.keys = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.uint64)
        self._bytes = content
        log.info("blocked_items_read", file=str(path), ids=len(forms))
        if self._items is not None:
            items = self._items()
            unknown = [
                of_line[0]
                for of_line, of_keys in zip(forms, keys, strict=True)
                if not items.index_of(of_keys).any()
            ]
            if unknown:
                log.warning(
                    "blocked_items_unknown",
                    file=str(path),
                    ids=len(unknown),
                    first=unknown[:NAMED],
                    meaning="no item of the catalogue has these ids: nothing of it is blocked",
                )


def _text(content: bytes) -> str:
    """ValueError for what is neither UTF-8 nor marked as UTF-16."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def _forms(line: str) -> list[str]:
    """The ids that a line may mean: as it stands, and as the first cell of a table."""
    as_is = line.strip()
    cell = as_is.rstrip(",;\t ").removeprefix('"').removesuffix('"')
    return [as_is] if cell in ("", as_is) else [as_is, cell]
