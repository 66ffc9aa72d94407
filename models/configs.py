"""What a model is made of; and a config, form or loop whose values are those of another one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from models.layers.embedding_tables import EmbeddingOptions
from models.schema.inputs import Reads

Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelConfig:
    """What a model reads, its settings (a frozen dataclass of JSON-ready values), and how the
    tables of a ranking model are stored."""

    reads: Reads
    settings: Any
    options: EmbeddingOptions = field(default_factory=EmbeddingOptions)


def derived(kind: type[Config], source: Any, **given: Any) -> Config:
    """The dataclass `kind` with the values of `source` of the same names, and `given` over them.

    What neither names keeps the default of `kind`.
    """
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return kind(**{n: getattr(source, n) for n in names if hasattr(source, n)} | given)
