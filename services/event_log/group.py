"""A consumer group of the embedded log on disk: who is a member, who reads what, how far it got.

A member is a locked file in members/ (the kernel drops the lock with the process, so kill -9 is a
leave), a partition is read only while its own lock is held, and the committed position is one small
JSON file per partition, replaced atomically by whoever holds that lock. Joining and forgetting lock
the folder of all groups, shared and exclusively, so that no group is deleted under a new member.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from models.files import replacing, sync
from services.event_log.interface import LogCorrupt
from services.event_log.partition import DIRECTORY_MODE, FILE_MODE


class Position(NamedTuple):
    """The next record to read: its offset, and the segment and byte where it lies."""

    offset: int
    base: int
    byte: int


def share(partitions: int, members: Sequence[str], member: str) -> frozenset[int]:
    """The partitions of one member: every m-th, by its rank among the m live members."""
    rank = sorted(members).index(member)
    return frozenset(range(rank, partitions, len(members)))


def forget(directory: Path, prefix: str) -> int:
    """Delete the groups in `directory` whose names begin so and that nobody is in; how many."""
    if not directory.exists():
        return 0
    with _locked(directory, fcntl.LOCK_EX):
        dead = [g for g in directory.iterdir() if g.name.startswith(prefix) and not _is_used(g)]
        for group in dead:
            shutil.rmtree(group)
    return len(dead)


def committed(group: Path, partition: int) -> Position | None:
    """The committed position of the group in that folder; None when nothing was committed."""
    path = _position_path(group, partition)
    try:
        position = Position(**json.loads(path.read_text()))
        if not all(type(part) is int and 0 <= part < 1 << 63 for part in position):
            raise ValueError(f"{position}")
        return position
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise LogCorrupt(
            f"{path} does not hold a position ({error}): delete it to read the partition anew"
        ) from error


def _position_path(group: Path, partition: int) -> Path:
    return group / f"{partition}.position.json"


def _is_used(group: Path) -> bool:
    members = group / "members"
    return members.exists() and any(_is_live(member) for member in members.iterdir())


def _is_live(member: Path) -> bool:
    """Whether the process of a member's file lives; a dead one's file is removed."""
    try:
        fd = os.open(member, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two members checking at once do not take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        member.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


class Group:
    """One member's view of its group. Raises OSError; LogCorrupt for an unreadable position."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.members_directory = directory / "members"
        directory.parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        with _locked(directory.parent, fcntl.LOCK_SH):
            for folder in (directory, self.members_directory):
                folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            self.member, self._member_fd = self._join()
        self._partition_fds: dict[int, int] = {}

    def _join(self) -> tuple[str, int]:
        while True:
            member = uuid.uuid4().hex
            fd = os.open(self.members_directory / member, os.O_RDWR | os.O_CREAT, FILE_MODE)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return member, fd
            os.close(fd)  # another member took the file for a dead one before it was locked

    def changed_ns(self) -> int:
        """Changes whenever a member joins or leaves in good order (not when one is killed)."""
        return self.members_directory.stat().st_mtime_ns

    def live_members(self) -> list[str]:
        """Ids of the members whose processes live; the files of dead ones are removed."""
        others = (p for p in self.members_directory.iterdir() if p.name != self.member)
        return [self.member, *(p.name for p in others if _is_live(p))]

    def try_acquire(self, partition: int) -> bool:
        """Lock a partition for reading; False while another member still reads it."""
        fd = os.open(self.directory / f"{partition}.lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._partition_fds[partition] = fd
        return True

    def release(self, partition: int) -> None:
        os.close(self._partition_fds.pop(partition))

    def commit(self, partition: int, position: Position) -> None:
        """Replace the committed position; the caller must hold the partition.

        After a power loss the position before it may be found instead: more is delivered again.
        """
        path = _position_path(self.directory, partition)
        with replacing(path, durable=False, mode=FILE_MODE) as temporary:
            temporary.write_text(json.dumps(position._asdict()))
            sync(temporary)

    def leave(self) -> None:
        """Release every partition, then the membership."""
        for partition in list(self._partition_fds):
            self.release(partition)
        (self.members_directory / self.member).unlink(missing_ok=True)
        os.close(self._member_fd)
