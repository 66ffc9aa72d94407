"""URLs of settings in messages: without what only the one who set them may know."""

from __future__ import annotations

_FOLDERS = ("lmdb", "log")  # a path may hold anything, and no credentials


def public(url: str) -> str:
    """The URL without user, password and query, for messages and logs.

    Cut as text: whoever mistypes a URL, or leaves a "/" or "#" of a password as it is, is told of
    it in a message, too.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    if scheme in _FOLDERS:
        return url
    at, query = rest.rfind("@"), rest.find("?")
    if 0 <= query < at:  # a "?" of a password, or an "@" of a query: either may be a secret
        return f"{scheme}{separator}..."
    return scheme + separator + rest[at + 1 : query if query >= 0 else None]
