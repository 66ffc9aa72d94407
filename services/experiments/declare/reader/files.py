"""What experiments files declare that others of their parts use."""

from __future__ import annotations

from models.yaml_reader.places import Place, Reading
from services.experiments.declare.config import Experiment, Holdout, Segment
from services.experiments.declare.domain import Domain
from services.experiments.declare.metrics import Metric


class Files(Reading):
    """What the files declare that others of their parts use or must not use again, and everything
    that is wrong with them."""

    empty = "Write `version: 1` and `layers: []` to run nothing"

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self.domain = domain
        self.metrics: dict[str, Metric | None] = {}  # None: one with a problem of its own
        self.units: dict[str, Place] = {}
        self.segments: list[Segment] = []
        self.holdout: Holdout | None = None
        self.salts: dict[str, Place] = {}
        self.owners: dict[str, str] = {}  # parameter -> the layer that owns it
        self.interleaving: list[tuple[Experiment, Place]] = []  # of earlier layers
