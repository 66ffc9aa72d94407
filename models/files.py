"""Files that are replaced whole: who reads one finds the old content or the new, never a part.

The new content is written beside the file, under a name that begins with a dot, and takes its place
by a rename. Several processes may replace a file at once: one of their contents stands there in the
end. Where writing fails, the file stays as it was and nothing is left beside it; only a process
that is killed meanwhile leaves what it had written.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool, mode: int | None = None) -> Iterator[Path]:
    """An empty file to be written, which replaces `path` when the block has ended without an error.

    `durable`: when the block has been left, content and name outlast a power loss; without it, the
    old content or none may be found then. `mode`: the permissions from the beginning on; None:
    those that the umask leaves.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}")
    created = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode or 0o666)
    try:
        try:
            if mode is not None:
                os.fchmod(created, mode)  # whatever the umask has taken away
        finally:
            os.close(created)
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def replace_whole(
    path: Path, content: bytes | str, *, durable: bool, mode: int | None = None
) -> None:
    """Replace a file by this content (text in UTF-8), as `replacing` does. OSError."""
    with replacing(path, durable=durable, mode=mode) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
