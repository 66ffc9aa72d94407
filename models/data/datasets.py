"""The data sets that Tandem can read, and making one ready; `datasets.yaml` says what each is.

Only ml-latest-small is in the checkout (its terms allow that; no package has it) and `simulator` is
generated; for everything else the user brings the owner's files and `prepare` checks and converts
them.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from models.data.errors import DataError
from models.data.own import prepared as own
from models.data.own.prepared import Frames
from models.data.readers import (
    amazon_beauty,
    avazu,
    criteo,
    grocery,
    kuairand,
    movielens_1m,
    movielens_tags,
    taobao_ad,
)
from models.data.sequences import Sequences, from_events
from models.data.source_files import DataWarning, Report, check_checksums, quiet
from models.data.tables import SPLITS, FieldTable
from models.data.worlds.films import movielens
from models.data.worlds.films.dataset import canonical_events
from models.files import replacing


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set: what `datasets.yaml` says of it, and the readers of its files.

    `table` and `sequences` take the source folder (and the options named in `options`), and so does
    `frames`, the data as the domain of `models/data/worlds/WORLD`, to train what is served.
    """

    name: str
    what: str
    page: str
    terms: str
    files: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    table: Callable[..., FieldTable] | None = None
    sequences: Callable[..., Sequences] | None = None
    has_sequences: Callable[[Path], bool] | None = None  # None: always
    world: str = ""
    frames: Callable[..., Frames] | None = None
    bundled: Path | None = None

    @property
    def generated(self) -> bool:
        """Whether it is made when it is trained on."""
        return self.table is None and self.sequences is None


def _latest_sequences(folder: Path) -> Sequences:
    events = canonical_events(movielens.read(folder))
    return from_events("ml-latest-small", *events[["user_id", "item_id", "event_time_ms"]])


_READERS: dict[str, dict[str, Any]] = {
    "ml-latest-small": {
        "table": movielens_1m.read_latest,
        "sequences": _latest_sequences,
        "bundled": movielens.BUNDLED,
    },
    "ml-1m": {
        "table": movielens_1m.read,
        "sequences": movielens_1m.read_sequences,
        "has_sequences": movielens_1m.has_sequences,
        "world": "movielens_1m",
        "frames": movielens_1m.read_frames,
    },
    "amazon-beauty": {
        "sequences": amazon_beauty.read,
        "world": "amazon_beauty",
        "frames": amazon_beauty.read_frames,
    },
    "grocery": {
        "sequences": grocery.read,
        "world": "grocery",
        "frames": grocery.read_frames,
    },
    "criteo-x1": {"table": criteo.read_x1},
    "criteo-x4": {"table": criteo.read_x4},
    "criteo-mlcc": {"table": criteo.read_mlcc},
    "avazu-x1": {"table": avazu.read_x1},
    "avazu-x4": {"table": avazu.read_x4},
    "avazu-mlcc": {"table": avazu.read_mlcc},
    **{
        f"kuairand-{version}": {
            "table": partial(kuairand.read, version=version),
            "world": "kuairand",
            "frames": partial(kuairand.read_frames, version=version),
        }
        for version in ("pure", "1k", "27k")
    },
    "taobao-ad": {
        "table": taobao_ad.read,
        "world": "taobao_ad",
        "frames": taobao_ad.read_frames,
    },
    "taobao-ad-mlcc": {"table": taobao_ad.read_mlcc},
    "taobao-ad-x1": {"table": taobao_ad.read_x1},
    "movielens-tags": {"table": movielens_tags.read},
    "simulator": {},
}
DATA_SETS: dict[str, DataSet] = {
    name: DataSet(name=name, **facts, **_READERS[name])
    for name, facts in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items()
}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made, and what it found suspicious."""

    table: FieldTable | None
    sequences: Sequences | None
    domain: bool  # whether it has a schema.yaml to train what is served by
    notes: tuple[str, ...]


def find(name: str) -> DataSet:
    """The entry `name`; DataError lists the names there are."""
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}: one of {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def prepare(
    data: DataSet,
    source: Path | None,
    out: Path,
    options: dict[str, Any] | None = None,
    verify: bool = True,
    report: Report = quiet,
) -> Prepared:
    """Read, check and write a data set: `out/table` and `out/sequences`, whichever it has, and the
    schema.yaml and tables of its domain, if it has users and items.

    DataError with what to do where the files, the options or the values are not usable, or `out` is
    a folder of another domain; nothing is written then. `options` are those of the reader; an unset
    (None) one keeps its default.
    """
    if data.generated:
        raise DataError(f"{data.name}: is generated when it is trained on: nothing to prepare")
    chosen = {k: v for k, v in (options or {}).items() if v is not None}
    for option in chosen:
        if option not in data.options:
            known = ", ".join(f"--{o}" for o in data.options) or "none"
            raise DataError(f"{data.name}: has no option --{option}: it takes {known}")
    folder = source or data.bundled
    if folder is None:
        raise DataError(
            f"{data.name}: pass --source FOLDER with {', '.join(data.files)} from {data.page}"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder: pass the one with {', '.join(data.files)}")
    if data.frames:
        own.check_free(out, data.world)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        if verify and data.checksums:
            report("comparing checksums")
            check_checksums(folder, data.checksums)
        table = data.table(folder, report=report, **chosen) if data.table else None
        sequences = None
        if data.sequences and (data.has_sequences is None or data.has_sequences(folder)):
            report("reading sequences")
            sequences = data.sequences(folder)
        frames = None
        if data.frames:
            report("reading events, items and users")
            of_users = {"users", "seed"} & chosen.keys() if "users" in data.options else ()
            frames = data.frames(folder, **{option: chosen[option] for option in of_users})
        report("writing")
        if table is not None:
            table.save(out / "table")
        if sequences is not None:
            save_sequences(sequences, out / "sequences")
        if frames is not None:
            own.write(out, data.world, frames)
    notes = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    # Drawing some of the users gives other rows than the owner's count.
    if data.rows and "users" not in chosen and (note := _other_rows(data, table, sequences)):
        notes.append(note)
    return Prepared(table, sequences, frames is not None, tuple(notes))


def _other_rows(data: DataSet, table: FieldTable | None, sequences: Sequences | None) -> str | None:
    if table is None:
        found = [len(cast(Sequences, sequences).items)]
    elif len(data.rows) == len(SPLITS):
        found = [len(table.rows(split)) for split in SPLITS]
    else:
        found = [len(table)]
    if found == data.rows:
        return None
    return (
        f"{data.name}: {' / '.join(f'{n:,}' for n in found)} rows, the owner's files have "
        f"{' / '.join(f'{n:,}' for n in data.rows)}"
    )


def save_sequences(sequences: Sequences, folder: Path) -> None:
    """Write `sequences` as one .npz file without pickles, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {
        "name": np.array(sequences.name),
        "offsets": sequences.offsets,
        "items": sequences.items,
        "item_ids": np.array(sequences.item_ids, dtype=str),
    }
    if sequences.times_ms is not None:
        arrays["times_ms"] = sequences.times_ms
    if sequences.item_attributes is not None:
        flat = [a for listed in sequences.item_attributes for a in listed]
        arrays["attributes"] = np.array(flat, np.int64)
        arrays["attribute_counts"] = np.array([len(a) for a in sequences.item_attributes])
    if sequences.attribute_names is not None:
        arrays["attribute_names"] = np.array(sequences.attribute_names, dtype=str)
    path = folder / "sequences.npz"
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **cast(dict[str, Any], arrays))


def load_sequences(folder: Path) -> Sequences:
    """What `save_sequences` wrote; DataError if it is missing or damaged."""
    path = folder / "sequences.npz"
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise DataError(f"{path}: is not there: run `tandem data prepare`") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: is damaged ({error}): prepare it anew") from error
    attributes = None
    if "attributes" in arrays:
        ends = np.cumsum(arrays["attribute_counts"])[:-1]
        attributes = tuple(tuple(a.tolist()) for a in np.split(arrays["attributes"], ends))
    names = arrays.get("attribute_names")
    return Sequences(
        name=str(arrays["name"]),
        offsets=arrays["offsets"],
        items=arrays["items"],
        times_ms=arrays.get("times_ms"),
        num_items=len(arrays["item_ids"]),
        item_ids=tuple(arrays["item_ids"].tolist()),
        item_attributes=attributes,
        attribute_names=None if names is None else tuple(names.tolist()),
    ).check()
