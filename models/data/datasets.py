"""The data sets that Tandem can read: what each is, where its owner gives it, what to expect.

Only ml-latest-small is shipped (its terms allow it) and `simulator` is generated; for everything
else the user brings the owner's files and `prepare` checks and converts them.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from models.data.errors import DataError
from models.data.events import canonical_events
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
from models.files import replacing

Kind = Literal["sequences", "table", "both", "generated"]


@dataclass(frozen=True)
class DataSet:
    """One entry of the registry.

    `table` and `sequences` take the source folder (and the options named in `options`). `rows` is
    what the owner's files give: rows of train, validation and test, or the total; `checksums` are
    those that the owner (or the benchmark's data card) publishes, by file name: "md5:…", or "git:…"
    as Git names a file of the owner's repository.
    """

    name: str
    what: str
    page: str
    files: tuple[str, ...]
    terms: str
    kind: Kind
    rows: tuple[int, ...] = ()
    checksums: dict[str, str] = field(default_factory=dict)
    table: Callable[..., FieldTable] | None = None
    sequences: Callable[..., Sequences] | None = None
    has_sequences: Callable[[Path], bool] | None = None  # None: always
    options: tuple[str, ...] = ()
    bundled: Path | None = None


CRITEO_PAGE = "https://www.kaggle.com/c/criteo-display-ad-challenge"
AVAZU_PAGE = "https://www.kaggle.com/c/avazu-ctr-prediction"
TAOBAO_PAGE = "https://tianchi.aliyun.com/dataset/56"
KUAIRAND_PAGE = "https://kuairand.com"
BARS_PAGE = "https://github.com/reczoo/Datasets"
KAGGLE_TERMS = "Competition rules: research and the competition only, no redistribution."
TAOBAO_TERMS = "Alibaba's terms on the owner's page: research, no commercial use."
KUAIRAND_TERMS = "CC BY-SA 4.0."
GROUPLENS_TERMS = "Research use with citation, no commercial use"
_SASREC_ML_1M = "git:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24"
THREE_PARTS = ("train.csv", "valid.csv", "test.csv")


def _latest_sequences(folder: Path) -> Sequences:
    events = canonical_events(movielens.read(folder))
    return from_events(
        "ml-latest-small",
        events["user_id"].to_numpy(),
        events["item_id"].to_numpy(),
        events["event_time_ms"].to_numpy(),
    )


def _kuairand(version: str, what: str, rows: int, checksums: dict[str, str]) -> DataSet:
    logs = [kuairand.FIRST_LOG, kuairand.SECOND_LOG]
    parts = ("_part1", "_part2") if version == "27k" else ("",)
    return DataSet(
        f"kuairand-{version}",
        f"KuaiRand-{what}; tasks click, like, long_view; histories per action",
        KUAIRAND_PAGE,
        (
            *(f"{log}_{version}{part}.csv" for log in logs for part in parts),
            f"user_features_{version}.csv",
            f"video_features_basic_{version}.csv",
        ),
        KUAIRAND_TERMS,
        "table",
        (rows,),
        checksums,
        table=partial(kuairand.read, version=version),
        options=("users", "seed"),
    )


DATA_SETS: dict[str, DataSet] = {
    each.name: each
    for each in (
        DataSet(
            "ml-latest-small",
            "MovieLens, 610 users, 9,724 rated films, real times, genres, tags",
            "https://grouplens.org/datasets/movielens/latest/",
            ("ratings.csv.gz", "movies.csv.gz", "tags.csv.gz"),
            "May be redistributed under its own terms, no commercial use; not a benchmark.",
            "both",
            (100_836,),
            table=movielens_1m.read_latest,
            sequences=_latest_sequences,
            options=("split", "seed"),
            bundled=movielens.BUNDLED,
        ),
        DataSet(
            "ml-1m",
            "MovieLens 1M, 6,040 users; tasks click (rating >= 3), like (rating >= 4)",
            "https://grouplens.org/datasets/movielens/1m/",
            ("ratings.dat or interactions_derived.csv", "users.dat", "movies.dat"),
            f"{GROUPLENS_TERMS}, no redistribution.",
            "both",
            # The owner publishes that of the archive alone. ml-1m_sasrec.txt is data/ml-1m.txt of
            # https://github.com/kang205/SASRec.
            checksums={
                "ml-1m.zip": "md5:c4d9eecfca2ab87c1945afe126590906",
                "ml-1m_sasrec.txt": _SASREC_ML_1M,
                "ml-1m.txt": _SASREC_ML_1M,
            },
            table=movielens_1m.read,
            sequences=movielens_1m.read_sequences,
            has_sequences=movielens_1m.has_sequences,
            options=("split", "seed"),
        ),
        DataSet(
            "amazon-beauty",
            "Amazon Beauty 5-core, 22,363 users, 12,101 items with attributes",
            "https://github.com/RUCAIBox/CIKM2020-S3Rec",
            ("Beauty.txt", "Beauty_item2attributes.json"),
            "Research only, no redistribution.",
            "sequences",
            (198_502,),
            {
                "Beauty.txt": "git:a29773026846d857ec8176cb25f37b23ecf20155",
                "Beauty_item2attributes.json": "git:805189e7a6dd1005ef38344f5d556f27b8dc240f",
            },
            sequences=amazon_beauty.read,
        ),
        DataSet(
            "grocery",
            "Amazon Grocery of ReChorus, 14,681 users over 14 years, 57 categories",
            "https://github.com/THUwangcy/ReChorus",
            ("train.csv", "item_meta.csv"),
            "Terms unclear: use locally, do not pass on.",
            "sequences",
            (121_892,),
            # The repository has held older files of other items under the same names.
            {
                "train.csv": "git:76e05bd4c3adac964ddbe1813dfa72dc82dba4bb",
                "item_meta.csv": "git:75887551b8661064297931b7b786996ca1c590f4",
            },
            sequences=grocery.read,
        ),
        DataSet(
            "criteo-x1",
            "Criteo, cut of AFN/BARS x1 (random 7:2:1): 13 numbers, 26 fields",
            BARS_PAGE,
            THREE_PARTS,
            KAGGLE_TERMS,
            "table",
            (33_003_326, 8_250_124, 4_587_167),
            table=criteo.read_x1,
        ),
        DataSet(
            "criteo-x4",
            "Criteo, cut of AutoInt/BARS x4 (random 8:1:1): 39 fields, min count 10",
            CRITEO_PAGE,
            ("train.txt, or the three csv files of x4",),
            KAGGLE_TERMS,
            "table",
            (36_672_493, 4_584_062, 4_584_062),
            {
                "train.csv": "md5:4a53bb7cbc0e4ee25f9d6a73ed824b1a",
                "valid.csv": "md5:fba5428b22895016e790e2dec623cb56",
                "test.csv": "md5:cfc37da0d75c4d2d8778e76997df2976",
            },
            table=criteo.read_x4,
        ),
        DataSet(
            "criteo-mlcc",
            "Criteo, protocol of MLCC: file order 90/1/9, 39 hashed fields",
            CRITEO_PAGE,
            ("train.txt",),
            KAGGLE_TERMS,
            "table",
            (45_840_617,),
            table=criteo.read_mlcc,
        ),
        DataSet(
            "avazu-x1",
            "Avazu, cut of AFN/BARS x1 (7:1:2): 22 fields",
            BARS_PAGE,
            THREE_PARTS,
            KAGGLE_TERMS,
            "table",
            (28_300_276, 4_042_897, 8_085_794),
            table=avazu.read_x1,
        ),
        DataSet(
            "avazu-x4",
            "Avazu, cut of AutoInt/BARS x4 (random 8:1:1): 24 fields, min count 2",
            AVAZU_PAGE,
            ("train.csv of Kaggle, or the three csv files of x4",),
            KAGGLE_TERMS,
            "table",
            (32_343_172, 4_042_897, 4_042_898),
            # That of train.csv is left out: the Kaggle file has the same name.
            {
                "valid.csv": "md5:33232931d84d6452d3f956e936cab2c9",
                "test.csv": "md5:3ebb774a9ca74d05919b84a3d402986d",
            },
            table=avazu.read_x4,
        ),
        DataSet(
            "avazu-mlcc",
            "Avazu, protocol of MLCC: shuffled 90/1/9, 22 hashed fields, raw hour",
            AVAZU_PAGE,
            ("train.csv",),
            KAGGLE_TERMS,
            "table",
            (40_428_967,),
            table=avazu.read_mlcc,
        ),
        _kuairand(
            "pure",
            "Pure, 27,285 users, 7,551 videos",
            1_436_609,
            {"KuaiRand-Pure.tar.gz": "md5:0820331067a3784d9691136f772b35a7"},
        ),
        _kuairand("1k", "1K, 1,000 users, 4.4 million videos", 11_713_045, {}),
        _kuairand("27k", "27K, 27,285 users, 32 million videos (set --users)", 322_278_385, {}),
        DataSet(
            "taobao-ad",
            "Taobao ads, owner's files joined; by day: train 6-11, valid 12, test 13 May",
            TAOBAO_PAGE,
            ("raw_sample.csv", "ad_feature.csv", "user_profile.csv"),
            TAOBAO_TERMS,
            "table",
            table=taobao_ad.read,
        ),
        DataSet(
            "taobao-ad-mlcc",
            "Taobao ads, protocol of MLCC: shuffled 90/1/9, 17 hashed fields",
            TAOBAO_PAGE,
            ("raw_sample.csv", "ad_feature.csv", "user_profile.csv"),
            TAOBAO_TERMS,
            "table",
            table=taobao_ad.read_mlcc,
        ),
        DataSet(
            "taobao-ad-x1",
            "Taobao ads, cut of BARS x1: 50-step histories; 5 % of train is validation",
            BARS_PAGE,
            ("train.csv", "test.csv"),
            TAOBAO_TERMS,
            "table",
            (25_029_426,),
            {
                "train.csv": "md5:eaabfc8629f23519b04593e26c7522fc",
                "test.csv": "md5:f5ae6197e52385496d46e2867c1c8da1",
            },
            table=taobao_ad.read_x1,
            options=("seed",),
        ),
        DataSet(
            "movielens-tags",
            "MovielensLatest_x1 of BARS: user, item, tag (random 7:2:1)",
            BARS_PAGE,
            THREE_PARTS,
            f"{GROUPLENS_TERMS}.",
            "table",
            (1_404_801, 401_373, 200_686),
            {
                "train.csv": "md5:efc8bceeaa0e895d566470fc99f3f271",
                "valid.csv": "md5:e1930223a5026e910ed5a48687de8af1",
                "test.csv": "md5:54e8c6baff2e059fe067fb9b69e692d0",
            },
            table=movielens_tags.read,
        ),
        DataSet(
            "simulator",
            "KuaiRand-shaped world of any size with known ground truth",
            "models/data/simulator.py",
            (),
            "Generated here: no terms.",
            "generated",
        ),
    )
}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made, and what it found suspicious."""

    table: FieldTable | None
    sequences: Sequences | None
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
    """Read, check and write a data set: `out/table` and `out/sequences`, whichever it has.

    DataError with what to do where the files, the options or the values are not usable; nothing is
    written then. `options` are those of the reader; an unset (None) one keeps its default.
    """
    if data.kind == "generated":
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
    notes = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    # Drawing some of the users gives other rows than the owner's count.
    if data.rows and "users" not in chosen and (note := _other_rows(data, table, sequences)):
        notes.append(note)
    report("writing")
    if table is not None:
        table.save(out / "table")
    if sequences is not None:
        save_sequences(sequences, out / "sequences")
    return Prepared(table, sequences, tuple(notes))


def _other_rows(data: DataSet, table: FieldTable | None, sequences: Sequences | None) -> str | None:
    if table is not None:
        counts = tuple(int((table.split == part).sum()) for part in range(len(SPLITS)))
        found = counts if len(data.rows) == len(SPLITS) else (len(table),)
    else:
        found = (len(cast(Sequences, sequences).items),)
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
