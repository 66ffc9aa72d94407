"""Folders that are whole or nothing: written under another name, sealed, and then renamed.

    checksums.json   of every file
    READY            written last: the checksum of checksums.json, and what its writer says besides

Whoever reads one trusts nothing that READY and the checksums do not confirm. They guard against
damage and copies under way, not against an attacker.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import xxhash

from models.files import sync

CHECKSUMS, READY = "checksums.json", "READY"

Read = TypeVar("Read")
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
DAMAGED = (ValueError, TypeError, EOFError, RecursionError, BadZipFile)


class Broken(Exception):
    """A folder cannot be trusted or written; the message names the file and the reason."""


class Unreachable(Broken):
    """A file cannot be read now, which says nothing about what it holds: trying again may help."""


def confirm(folder: Path) -> str:
    """Write the checksums of a folder's files; returns theirs. OSError."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    write_json(folder / CHECKSUMS, sums)
    return checksum(folder / CHECKSUMS)


def seal(folder: Path, digest: str, says: Mapping[str, Any]) -> None:
    """Make a folder's confirmed files durable and say so, and what else there is to say. To be
    renamed then, and its parent synced. OSError."""
    for path in folder.iterdir():
        sync(path)
    write_json(folder / READY, {**says, "checksums": digest})
    sync(folder / READY)
    sync(folder)


def verify(folder: Path, needed: Collection[str] = (), others: bool = False) -> dict[str, Any]:
    """What READY says, once it, the checksums of the files that are `needed` (none named, or with
    `others`: of all) and the presence of the others have been checked. Raises Broken."""
    if not read(folder / READY, Path.is_file):
        raise Broken(f"{folder / READY}: missing: it was not fully written")
    ready = read_json(folder / READY)
    if checksum(folder / CHECKSUMS) != ready.get("checksums"):
        raise Broken(f"{folder / CHECKSUMS}: does not match READY: write it again")
    sums = read_json(folder / CHECKSUMS)
    if unconfirmed := sorted(set(needed) - set(sums)):
        raise Broken(
            f"{folder / CHECKSUMS}: confirms no {unconfirmed[0]}: another build of Tandem made it,"
            " or it is damaged: make it anew"
        )
    checked = set(sums if others or not needed else needed)
    for file, expected in sums.items():
        if file not in checked:
            read(folder / file, Path.stat)  # one that is missing says that a copy is under way
        elif checksum(folder / file) != expected:
            raise Broken(f"{folder / file}: checksum mismatch: truncated or altered")
    return ready


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises Broken."""
    document = read(path, lambda p: json.loads(p.read_text(encoding="utf-8")))
    if not isinstance(document, dict):
        raise Broken(f"{path}: is not a JSON object")
    return document


def read(path: Path, reader: Callable[[Path], Read]) -> Read:
    """`reader(path)`, its failures turned into Broken."""
    try:
        return reader(path)
    except (*ABSENT, *DAMAGED) as error:
        raise Broken(f"{path}: cannot be read ({error})") from error
    except OSError as error:
        raise Unreachable(f"{path}: cannot be read now ({error})") from error


def checksum(path: Path) -> str:
    """xxh3-128 of a file."""
    return read(path, _digest)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb", opener=_unblocked) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _unblocked(path: str, flags: int) -> int:
    """Opens a pipe, too, at once: it would keep its reader waiting for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
