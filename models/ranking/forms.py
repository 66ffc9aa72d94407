"""The form of a network, of the settings of a model that is built on it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

Form = TypeVar("Form")


def form_of(kind: type[Form], settings: Any, **given: Any) -> Form:
    """The form dataclass `kind` with the settings of the same names, and `given` over them.

    What neither names keeps the form's default.
    """
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return kind(**{n: getattr(settings, n) for n in names if hasattr(settings, n)} | given)
