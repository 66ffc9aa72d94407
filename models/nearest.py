"""What somebody may have meant who wrote an unknown word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """A remark that names the known word that is most like this one; empty if none is."""
    of_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(word.lower(), list(of_lower), 1, 0.5)
    return f" (did you mean {of_lower[close[0]]}?)" if close else ""
