"""run_dir/experiments.json: how all experiments stood when the worker measured them last.

The worker replaces it whole after every round; `tandem experiments report` reads it instead of the
log as long as it is fresh.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from services.experiments.act.standing import Standing
from services.experiments.declare.config import Experiment
from services.experiments.declare.fingerprints import fingerprint_of
from services.experiments.report.findings import Coverage

log = structlog.get_logger(__name__)

SNAPSHOT = "experiments.json"
FRESH_S = 30.0  # age up to which a snapshot stands for the log, or two rounds if that is longer


class Fresh(NamedTuple):
    """What a snapshot says of an experiment."""

    standing: Standing
    coverage: Coverage
    as_of_ms: float


def entry(experiment: Experiment, standing: Standing) -> dict[str, Any]:
    """What a snapshot says of an experiment, which is the file's declaration."""
    return {"declared": declared(experiment), **standing.to_json()}


def declared(experiment: Experiment) -> str:
    """All of a declaration that statistics depend on: a snapshot of another one is of no use."""
    parts = (
        experiment.salt,
        experiment.unit,
        experiment.start_ms,
        experiment.stop_ms,
        experiment.plan,
        experiment.ramp,
        experiment.interleave,
        fingerprint_of(experiment),
    )
    return repr(parts)


def fresh(path: Path, experiment: Experiment, source: str, now_ms: float) -> Fresh | None:
    """`fresh_in` of the snapshot at `path`."""
    return fresh_in(read(path), experiment, source, now_ms)


def read(path: Path) -> Mapping[str, Any] | None:
    """The snapshot at `path`, for `fresh_in`; None when there is none that can be read."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _unreadable(error)
        return None
    return content


def fresh_in(
    content: Mapping[str, Any] | None, experiment: Experiment, source: str, now_ms: float
) -> Fresh | None:
    """An experiment's statistics and changes from a snapshot.

    None when there is none, or it is too old (FRESH_S), as far behind the log or from before the
    log was read to its end, of another log, or of another declaration.
    """
    if content is None:
        return None
    try:
        found = content["experiments"].get(experiment.name)
        if (
            found is None
            or found["declared"] != declared(experiment)
            or not content["caught_up"]
            or content["lag_s"] > FRESH_S
            or content["source"] != source
            or not 0 <= now_ms - content["written_ms"] <= content["fresh_s"] * 1000
        ):
            return None
        coverage = Coverage(content["unmatched"], content["undecodable"], source)
        return Fresh(Standing.from_json(found), coverage, content["written_ms"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _unreadable(error)
        return None


def _unreadable(error: Exception) -> None:
    log.warning("experiments_snapshot_unreadable", file=SNAPSHOT, cause=repr(error))
