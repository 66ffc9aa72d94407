"""Owners' files with one thing wrong: right, or a sentence with file and line."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.errors import DataError
from models.data.events import Dataset
from models.data.readers import amazon_beauty, grocery, kuairand, movielens_1m, taobao_ad
from models.data.source_files import DataWarning
from models.data.worlds.films import dataset as films
from tests.unit.models.data import owner_files

BOM = b"\xef\xbb\xbf"
Edit = Callable[[bytes], bytes]


def movielens(folder: Path) -> None:
    """The shipped form with 60 ratings of 6 users and 5 films."""
    ratings = [[1 + i % 6, 1 + i % 5, 3 + i % 3, 1_500_000_000 + 60 * i] for i in range(60)]
    owner_files.write(folder / "ratings.csv", "userId,movieId,rating,timestamp", ratings)
    movies = [[i, f"Film {i} (200{i})", "Drama"] for i in range(1, 6)]
    owner_files.write(folder / "movies.csv", "movieId,title,genres", movies)
    tags = [[1, 1, "good", 1_500_000_000]]
    owner_files.write(folder / "tags.csv", "userId,movieId,tag,timestamp", tags)
    for path in list(folder.glob("*.csv")):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "movielens": (movielens, films.load),
    "movielens table": (movielens, movielens_1m.read_latest),
    "ml-1m": (owner_files.ml_1m, movielens_1m.read),
    "grocery": (owner_files.grocery, grocery.read),
    "beauty": (owner_files.amazon_beauty, amazon_beauty.read),
}


def row(number: int, old: bytes, new: bytes) -> Edit:
    """Replace the beginning of a line (from 1)."""

    def edit(content: bytes) -> bytes:
        lines = content.split(b"\n")
        assert lines[number - 1].startswith(old), lines[number - 1]
        lines[number - 1] = new + lines[number - 1].removeprefix(old)
        return b"\n".join(lines)

    return edit


def sub(pattern: bytes, new: bytes) -> Edit:
    return lambda content: re.sub(pattern, new, content)


def rewrite(folder: Path, name: str, edit: Edit) -> None:
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.is_file():
        packed.write_bytes(gzip.compress(edit(gzip.decompress(packed.read_bytes()))))
    else:
        plain.write_bytes(edit(plain.read_bytes()))


WRONG = [
    ("movielens", "ratings.csv", sub(rb"(,15\d{8})\b", rb"\g<1>000"), "line 2: timestamp .*milli"),
    ("movielens", "ratings.csv", sub(rb"(,15\d{8})\b", rb"\g<1>000000"), "line 2: .*microsec"),
    ("movielens", "ratings.csv", sub(rb"(,15\d{8})\b", rb"\g<1>000000000"), "line 2: .*nanosec"),
    ("movielens", "ratings.csv", sub(rb",15", rb",-15"), "line 2: timestamp is -15"),
    ("movielens", "tags.csv", sub(rb"(,15\d{8})\b", rb"\g<1>000"), "line 2: timestamp .*milli"),
    ("movielens", "ratings.csv", row(3, b"2,2", b"2,02"), "line 3: movieId is '02'"),
    ("movielens", "ratings.csv", row(3, b"2,", b"02,"), "line 3: userId is '02'"),
    ("movielens", "movies.csv", row(3, b"2,", b"002,"), "line 3: movieId is '002'"),
    ("movielens", "movies.csv", row(3, b"2,", b"1,"), "line 3: movieId 1 stands .* second time"),
    ("movielens", "movies.csv", row(3, b"2,Film", b"2,\xff"), "line 3: is not UTF-8"),
    ("movielens table", "movies.csv", row(3, b"2,", b"1,"), "line 3: movieId 1 stands"),
    ("ml-1m", "ratings.dat", sub(rb"::956(\d+)", rb"::956\g<1>000"), "line 1: timestamp .*milli"),
    ("ml-1m", "ratings.dat", row(2, b"2", b"02"), "line 2: user is '02'"),
    ("ml-1m", "users.dat", row(2, b"2::M::56", b"2::M::old"), "line 2: age is 'old', expected"),
    ("ml-1m", "users.dat", row(2, b"2::M::56", b"2::M::"), "line 2: age is '', expected"),
    ("ml-1m", "users.dat", row(2, b"2", b"1"), "line 2: user 1 stands there a second time"),
    ("ml-1m", "users.dat", row(2, b"2", b"x"), "line 2: user is 'x', expected a whole number"),
    ("ml-1m", "users.dat", row(2, b"2", b"9" * 30), "line 2: user is '9+', expected"),
    ("ml-1m", "movies.dat", row(2, b"2", b"1"), "line 2: item 1 stands there a second time"),
    ("ml-1m", "movies.dat", row(2, b"2", b"two"), "line 2: item is 'two', expected"),
    ("grocery", "train.csv", sub(rb"\t(\d+)\n", rb"\t\g<1>000000000\n"), "line 2: time .* expec"),
    ("grocery", "train.csv", row(2, b"7", b"07"), "line 2: user_id is '07'"),
    ("grocery", "item_meta.csv", row(3, b"11", b"10"), "line 3: item_id 10 stands"),
    ("movielens", "ratings.csv", row(3, b"2,", b"-0,"), "line 3: userId is '-0'"),
    ("movielens", "ratings.csv", sub(rb"\n", b"\r"), "the last line holds carriage returns"),
    ("movielens", "ratings.csv", row(3, b"2,", b'"2,'), "line 3: 1 fields, .* quote is not clos"),
    ("movielens", "movies.csv", row(2, b"1,", b"<<<\n1,"), "line 2: 1 fields, expected 3: a row"),
    ("movielens", "tags.csv", row(2, b"1,", b"x" * 200_000 + b","), "line 2: userId is 'x{60}', "),
    ("ml-1m", "ratings.dat", row(1, b"1", b"# mine\n1"), "line 1: 1 fields, expected 7: a row"),
    ("ml-1m", "users.dat", row(2, b"2", b"x" * 99), "line 2: user is 'x{60}', expected a whole"),
    ("beauty", "Beauty.txt", row(2, b"2", b"\xff"), "line 2: is not UTF-8"),
    ("beauty", "Beauty.txt", row(2, b"2 2", b"2 " + b"9" * 30), "line 2: expected .* whole num"),
    ("beauty", "Beauty.txt", row(2, b"2 2", b"2 02"), "line 2: expected .* whole numbers"),
]


@pytest.mark.parametrize(("owner", "file", "edit", "sentence"), WRONG)
def test_what_cannot_be_meant_is_refused_by_file_and_line(
    tmp_path: Path, owner: str, file: str, edit: Edit, sentence: str
) -> None:
    write, read = READERS[owner]
    write(tmp_path)
    rewrite(tmp_path, file, edit)
    with pytest.raises(DataError, match=rf"{re.escape(file)}[^:]*: {sentence}"):
        read(tmp_path)


def grown(content: bytes) -> bytes:
    """Ids beyond 32 bits, the same in every file of an owner."""
    return re.sub(rb"(?m)^(\d+)(::|\t|,)", rb"9000000\g<1>\g<2>", content)


RIGHT = [
    ("ml-1m", ("ratings.dat", "users.dat", "movies.dat"), lambda content: BOM + content),
    ("ml-1m", ("ratings.dat", "users.dat"), grown),
    ("ml-1m", ("users.dat", "movies.dat"), lambda content: content.replace(b"\n", b"\r\n")),
    ("grocery", ("train.csv", "item_meta.csv"), lambda content: BOM + content),
    ("grocery", ("train.csv",), grown),
    ("beauty", ("Beauty.txt",), lambda content: BOM + content),
    ("beauty", ("Beauty.txt",), sub(rb"(?m)^(\d)", rb"9000000000\g<1>")),
    ("movielens", ("ratings.csv", "movies.csv", "tags.csv"), lambda content: BOM + content),
    ("movielens table", ("ratings.csv",), grown),
    ("movielens", ("movies.csv",), row(2, b"1,Film 1", "1,Film (١٢٣٤)".encode())),
    ("movielens table", ("movies.csv",), row(2, b"1,Film 1", "1,Film (١٢٣٤)".encode())),
]


def made(read: Callable[[Path], Any], folder: Path) -> list[np.ndarray]:
    """What a reader made, without the spelling of ids."""
    found = read(folder)
    if isinstance(found, Dataset):
        return [found.events["event_time_ms"].to_numpy(), found.items.features]
    if hasattr(found, "categorical"):
        return [found.categorical, found.labels, found.user, found.bags["genres"].ids]
    return [found.items, found.offsets]


@pytest.mark.filterwarnings("ignore::models.data.source_files.DataWarning")
@pytest.mark.parametrize(("owner", "files", "edit"), RIGHT)
def test_what_editors_and_large_ids_do_to_a_file_changes_nothing(
    tmp_path: Path, owner: str, files: tuple[str, ...], edit: Edit
) -> None:
    write, read = READERS[owner]
    write(tmp_path)
    before = made(read, tmp_path)
    for file in files:
        rewrite(tmp_path, file, edit)
    for expected, found in zip(before, made(read, tmp_path), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("owner", "file", "kept"), [("movielens", "ratings.csv", 60), ("ml-1m", "ratings.dat", 40)]
)
def test_ratings_that_stand_twice_count_once_with_a_note(
    tmp_path: Path, owner: str, file: str, kept: int
) -> None:
    write, read = READERS[owner]
    write(tmp_path)
    header = b"" if owner == "ml-1m" else b"userId,movieId,rating,timestamp\n"
    rewrite(tmp_path, file, lambda content: content + content.removeprefix(header))
    with pytest.warns(DataWarning, match=f"{kept} rows stand twice and count once"):
        rows = made(read, tmp_path)
    assert len(rows[0]) == kept


@pytest.mark.parametrize(
    ("write", "read", "file", "key"),
    [
        (owner_files.kuairand, kuairand.read, "user_features_pure.csv", "user_id"),
        (owner_files.kuairand, kuairand.read, "video_features_basic_pure.csv", "video_id"),
        (owner_files.taobao_raw, taobao_ad.read, "ad_feature.csv", "adgroup_id"),
        (owner_files.taobao_raw, taobao_ad.read, "user_profile.csv", "userid"),
    ],
)
def test_no_side_table_is_joined_while_a_key_stands_twice(
    tmp_path: Path,
    write: Callable[[Path], None],
    read: Callable[[Path], Any],
    file: str,
    key: str,
) -> None:
    write(tmp_path)

    def repeat(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        return b"".join([*lines, lines[1]])

    rewrite(next(tmp_path.rglob(file)).parent, file, repeat)
    with pytest.raises(DataError, match=rf"{re.escape(file)}.* {key} .* second time"):
        read(tmp_path)
