"""Reading experiments.yaml: every error of the file, each with its line and the way to repair it.

The file is read as a tree of YAML nodes, because nodes know their lines. A part that is wrong is
reported and left out, and reading goes on, so that one run of `tandem experiments validate` shows
everything. Only a file without any problem becomes an `ExperimentsConfig`.

Instead of one file there may be a folder: all its *.yaml are read in the order of their names, each
a whole file of its own, and their layers make one configuration. Names, salts and parameters are as
unique across the files as within one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from models.yaml_reader.problems import Problem
from models.yaml_reader.values import instant_ms as instant_ms
from services.experiments.declare.config import (
    NO_HOLDOUT,
    ExperimentsConfig,
    ExperimentsError,
)
from services.experiments.declare.domain import Domain
from services.experiments.declare.reader.file import FileBlock
from services.experiments.declare.reader.files import Files

MAX_READS = 10

Sources: TypeAlias = Mapping[str, bytes]  # a file's bytes by its name within the folder, or by ""


def load(path: Path, domain: Domain) -> ExperimentsConfig:
    """Read a file or a folder of a domain; ExperimentsError with all problems, OSError when it
    cannot be."""
    return parse_all(read(path), str(path), domain)


def read(path: Path) -> Sources:
    """The bytes of a file, or of the *.yaml of a folder in the order of their names. OSError.

    Hidden files are left out. A folder is read until two readings agree, so that a replaced one
    (Kubernetes exchanges a mounted ConfigMap by one rename) is not taken half old and half new.
    """
    if not path.is_dir():
        return {"": path.read_bytes()}
    sources = _read_folder(path)
    for _ in range(MAX_READS):
        again = _read_folder(path)
        if again == sources:
            break
        sources = again
    return sources


def _read_folder(path: Path) -> Sources:
    found = {}
    for file in sorted(f for f in path.glob("*.yaml") if not f.name.startswith(".")):
        # One that is gone since it was listed makes two readings differ, or was never there.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found[file.name] = file.read_bytes()
    return found


def parse(data: bytes, file: str, domain: Domain) -> ExperimentsConfig:
    """Read one file's bytes; `file` is its name in error messages. Raises ExperimentsError."""
    return parse_all({"": data}, file, domain)


def parse_all(sources: Sources, file: str, domain: Domain) -> ExperimentsConfig:
    """One configuration of what `read` gave; `file` names it in errors. Raises ExperimentsError."""
    files = Files(domain)
    if not sources:
        fix = "Write one with `version: 1` and `layers: []` to run nothing"
        files.problems.append(Problem(1, "", "the folder has no *.yaml file", fix))
    roots = [files.compose(data, name) for name, data in sources.items()]
    blocks = [FileBlock.model_validate(root, context=files) for root in roots if root]
    for block in blocks:
        block.declare()
    layers = []
    for block in blocks:
        if block.holdout:
            block.holdout.declare()
        for segment in block.segments:
            segment.declare()
        layers += [layer.layer() for layer in block.layers]
    if files.problems:
        raise ExperimentsError(file, files.problems)
    return ExperimentsConfig(
        tuple(layers),
        files.holdout or NO_HOLDOUT,
        tuple(metric for metric in files.metrics.values() if metric),
        tuple(files.units),
        tuple(files.segments),
        domain.parameters,
    )
