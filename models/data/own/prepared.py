"""A prepared data set as an owner's folder, to train on and to serve: what `tandem init` and
`tandem import` make, from the frames of a reader and the schema.yaml of a world."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import polars as pl

from models.data import worlds
from models.data.errors import DataError
from models.data.own.imports import Options, import_file
from models.data.own.store import DATA, SCHEMA
from models.data.own.wanted import TABLES
from models.data.source_files import suspect
from models.schema import lock, read

WORLDS = Path(worlds.__file__).parent
SETTINGS = """\
# The settings of this installation, where they are not the defaults. Tandem's own tandem.yaml is
# the manual of every setting.
schema_file: schema.yaml
router:
  experiments_file: experiments.yaml
"""
EXPERIMENTS = "version: 1\nlayers: []  # docs/experiments.md of Tandem says how to write them\n"


class Frames(NamedTuple):
    """What a reader has found, with the columns that an import reads (docs/own-data.md)."""

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None = None


def check_free(folder: Path, world: str) -> None:
    """DataError for a folder of another domain, or whose schema.yaml was edited."""
    there = folder / SCHEMA
    if there.exists() and there.read_bytes() != (WORLDS / world / SCHEMA).read_bytes():
        raise DataError(
            f"{there}: is not that of the data set {world}, whose tables would take the place of"
            " those beside it: name another folder with --out"
        )


def write(folder: Path, world: str, frames: Frames) -> None:
    """The world's schema.yaml, settings and experiments where there are none, and the tables in
    place of those that are there; the lock is added to. What an import refuses is warned of
    (DataWarning). DataError as `check_free`."""
    check_free(folder, world)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (WORLDS / world).iterdir():
        if path.suffix in (".yaml", ".txt"):
            shutil.copyfile(path, folder / path.name)
    declared = read.load(folder / SCHEMA)
    lock.write(folder / lock.NAME, lock.read(folder / lock.NAME).with_(declared))
    for name, text in (("tandem.yaml", SETTINGS), ("experiments.yaml", EXPERIMENTS)):
        if not (folder / name).exists():
            (folder / name).write_text(text, "utf-8")
    shutil.rmtree(folder / DATA, ignore_errors=True)
    with TemporaryDirectory(dir=folder) as scratch:
        for table in TABLES:
            rows: pl.DataFrame | None = getattr(frames, table)
            if rows is None:
                continue
            file = Path(scratch) / f"{table}.parquet"
            rows.write_parquet(file)
            tally = import_file(table, file, folder, Options(), time.time_ns() // 1_000_000).tally
            for why, group in (*tally.refused.items(), *tally.noted.items()):
                suspect(f"{group.rows} {table}, first {tally.sentence(why, group)}")
