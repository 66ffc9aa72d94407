"""A config, form or loop whose values are those of another one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def derived(kind: type[Config], source: Any, **given: Any) -> Config:
    """The dataclass `kind` with the values of `source` of the same names, and `given` over them.

    What neither names keeps the default of `kind`.
    """
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return kind(**{n: getattr(source, n) for n in names if hasattr(source, n)} | given)
