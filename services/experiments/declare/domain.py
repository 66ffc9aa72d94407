"""What of a domain experiments may speak of: its events, and the parameters of its requests."""

from __future__ import annotations

from dataclasses import dataclass

from models.schema.declaration import Declaration
from services.experiments.declare.metrics import SERVING, Events
from services.experiments.declare.parameters import ParameterSpecs


@dataclass(frozen=True)
class Domain:
    events: Events  # that metrics may be of
    parameters: ParameterSpecs


def domain_of(declaration: Declaration) -> Domain:
    """Without events that are called like something of SERVING: they cannot be asked for."""
    events = {event.name: event.id for event in declaration.events if event.name not in SERVING}
    return Domain(events, ParameterSpecs(declaration.weights))
