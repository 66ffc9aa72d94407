"""What the commands of `tandem` have in common: text of others on a terminal, how they fail.

Whoever can write a reason, a title or an id could otherwise move the cursor, colour what is not
his, or turn the order of what is read.
"""

from __future__ import annotations

import contextlib
import re
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from services.common.settings import Settings, SettingsInvalid

# C0, DEL and C1; marks, embeddings, overrides and isolates of direction; line and paragraph
# separators; the byte-order mark and tags, which nobody sees. Joiners stay: scripts need them.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """A line of text with its control characters, line breaks too, written as `\\x1b`."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str) -> str:
    """A line as rich's consoles and tables print it just as it is."""
    return escape(printable(text))


def say(message: str) -> None:
    """A sentence on stderr, with rich's markup; on a full disk unsaid."""
    with contextlib.suppress(OSError):
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """End with a sentence on stderr instead of a traceback."""
    said = "\n".join(map(plain, message.split("\n")))
    say(f"[bold red]error:[/] {said}")
    raise typer.Exit(1)


def load_settings() -> Settings:
    """The settings of the file and the environment; a command ends where they are invalid."""
    try:
        return Settings.load()
    except SettingsInvalid as error:
        fail(str(error))
