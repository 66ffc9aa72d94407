"""What of a domain experiments may speak of: its events, and the parameters of its requests."""

from __future__ import annotations

from dataclasses import dataclass

from models.schema.declaration import Declaration
from services.experiments.declare.metrics import Events, events_of
from services.experiments.declare.parameters import ParameterSpecs


@dataclass(frozen=True)
class Domain:
    events: Events
    parameters: ParameterSpecs


def domain_of(declaration: Declaration) -> Domain:
    """What a schema.yaml comes to for experiments."""
    return Domain(events_of(declaration), ParameterSpecs(declaration.weights))
