"""What goes wrong with data, as one exception type that names the file and the line."""

from __future__ import annotations


class DataError(Exception):
    """A data set cannot be used; the message names the file, the line and what was expected."""
