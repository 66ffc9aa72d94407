"""The lines of a text file, packed or not, in a stream.

A line is held only as far as somebody could have meant it as one row. Bytes that are no UTF-8 come
as lone surrogates, which no table takes: who builds one refuses the row.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from models.data.errors import DataError
from models.data.source_files import check_file

LONGEST = 1 << 20  # characters of a row
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextLines:
    """A file's lines, with their ends. `ends`: what ends a line, as `open` has it in `newline`."""

    def __init__(self, path: Path, ends: str) -> None:
        """DataError for a file that cannot be read, is empty or is UTF-16."""
        check_file(path)
        self.path = path
        self._size = path.stat().st_size
        self._raw = path.open("rb")
        unpacked: IO[bytes] = self._raw
        if path.suffix.lower() == ".gz":
            unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=self._raw))
        content = io.BufferedReader(cast(io.RawIOBase, unpacked), 1 << 18)
        try:
            mark = content.peek(2)[:2]
        except (EOFError, zlib.error, OSError) as error:
            self._raw.close()
            raise self._damaged(error) from error
        if mark in _OTHER_MARKS:
            self._raw.close()
            raise DataError(f"{path}: is UTF-16: save the file in the encoding UTF-8")
        self._text = io.TextIOWrapper(
            content, encoding="utf-8-sig", errors="surrogateescape", newline=ends
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._text.close()
        self._raw.close()

    @property
    def share(self) -> float:
        """How much of the file has been read, 0 to 1."""
        return min(1.0, self._raw.tell() / self._size)

    def __iter__(self) -> Iterator[str]:
        """Each line once; of a longer one than LONGEST so much. DataError for a damaged .gz."""
        read = self._text.readline
        try:
            while line := read(LONGEST):
                end = line
                while len(end) == LONGEST and end[-1] not in "\r\n":
                    end = read(LONGEST)
                yield line
        except (EOFError, zlib.error, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        what = "truncated or damaged gzip file" if self.path.suffix == ".gz" else "cannot be read"
        return DataError(f"{self.path}: {what} ({error}): copy it anew")


def is_text(line: str) -> bool:
    """Whether a line was UTF-8."""
    if line.isascii():
        return True
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
