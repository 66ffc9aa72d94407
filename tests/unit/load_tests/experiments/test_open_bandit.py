"""The Open Bandit files: read as they are, and refused by file and line when they are not."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from load_tests.experiments.open_bandit import ITEMS, read
from models.data.errors import DataError

HEADER = ",".join(
    ["", "timestamp", "item_id", "position", "click", "propensity_score"]
    + [f"user_feature_{i}" for i in range(4)]
    + [f"user-item_affinity_{i}" for i in range(ITEMS["men"])]
)


def row(number: int, item: object, position: object, click: object, propensity: object) -> str:
    values = [number, "2019-11-24 00:00:01+00:00", item, position, click, propensity, *"abcd"]
    return ",".join(map(str, [*values, *[0.0] * ITEMS["men"]]))


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "bts" / "men" / "men.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))
    return folder


def test_a_file_is_read_with_positions_from_zero(tmp_path: Path) -> None:
    log = read(written(tmp_path, row(0, 33, 1, 0, 0.25), row(1, 0, 3, 1, 1e-6)), "bts", "men")
    np.testing.assert_array_equal(log.items, [33, 0])
    np.testing.assert_array_equal(log.positions, [0, 2])
    np.testing.assert_array_equal(log.clicks, [0.0, 1.0])
    np.testing.assert_array_equal(log.propensities, [0.25, 1e-6])
    assert log.num_items == 34


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (row(1, 34, 1, 0, 0.5), "line 3: item_id is 34"),
        (row(1, 3, 0, 0, 0.5), "line 3: position is 0"),
        (row(1, 3, 1, 2, 0.5), "line 3: click is 2"),
        (row(1, 3, 1, 0, 0.0), r"line 3: propensity_score is 0\.0, expected above 0"),
        (row(1, 3, 1, 0, 1.5), r"line 3: propensity_score is 1\.5"),
        (row(1, "x", 1, 0, 0.5), "line 3"),
    ],
)
def test_a_wrong_value_is_refused_by_its_line(tmp_path: Path, wrong: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read(written(tmp_path, row(0, 3, 1, 0, 0.5), wrong), "bts", "men")


def test_another_table_or_none_is_refused(tmp_path: Path) -> None:
    other = HEADER.replace("propensity_score", "score")
    folder = written(tmp_path, row(0, 3, 1, 0, 0.5), header=other)
    with pytest.raises(DataError, match="propensity_score"):
        read(folder, "bts", "men")
    with pytest.raises(DataError, match="women"):
        read(tmp_path, "bts", "women")
    with pytest.raises(DataError, match="campaigns"):
        read(tmp_path, "bts", "children")
