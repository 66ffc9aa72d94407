"""Domains that tests work in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.data.worlds.films.schema import SCHEMA
from services.common.value_model import ValueModel
from services.experiments.declare.domain import domain_of
from services.experiments.declare.parameters import Parameters

FILMS = domain_of(SCHEMA.declaration)
VALUE_MODEL = ValueModel(SCHEMA.declaration)


def production(**fields: Any) -> Parameters:
    """Production's parameters of the films, but for these fields."""
    return replace(FILMS.parameters.production, **fields)
