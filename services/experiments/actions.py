"""What changed in running experiments without their file: stopped arms and steps of ramps.

The event log's topic `experiments` holds every change (records.proto, ExperimentChange), each with
the whole state after it. The newest change of an experiment's salt is its state; routers and the
worker follow the topic and put the states into the file's declarations.
"""

from __future__ import annotations

from typing import NamedTuple


class Epoch(NamedTuple):
    """A time in which the same arms of an experiment were live; it ends when the next begins."""

    start_ms: float
    stopped: frozenset[str] = frozenset()
