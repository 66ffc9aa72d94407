"""A small domain to begin from: `tandem init` writes it into a folder.

Its data are drawn, from a fixed seed: each user likes one cuisine, popular dishes are shown more
often, and what stands further down is opened less. They show the form of the files and that
everything works, and nothing else.
"""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.data.errors import DataError
from models.schema import lock, read

HERE = Path(__file__).parent
FILES = ("schema.yaml", "tandem.yaml", "experiments.yaml")
CUISINES = ("italian", "thai", "mexican", "indian")
DIETS = ("none", "vegetarian", "vegan")
USERS, ITEMS, SHOWN = 120, 80, 40
START_S, DAY_S = 1_760_000_000, 86_400


def write(folder: Path) -> list[Path]:
    """The files of a new folder. DataError if something lies there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: something lies there: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(HERE / name, folder / name)
    _table(folder / "items.csv", ("item_id", "name", "cuisine", "minutes", "added"), _items())
    _table(folder / "users.csv", ("user_id", "diet"), _users())
    columns = ("user_id", "item_id", "event", "time", "value", "position", "hour")
    _table(folder / "events.csv", columns, _events())
    lock.write(folder / lock.NAME, lock.Lock().with_(read.load(folder / "schema.yaml")))
    return [folder / name for name in (*FILES, lock.NAME, "items.csv", "users.csv", "events.csv")]


def _table(file: Path, columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(rows)


def _item(number: int) -> str:
    return f"r{number:03d}"


def _items() -> Iterable[tuple[Any, ...]]:
    for i in range(ITEMS):
        cuisines = CUISINES[i % 4] if i % 5 else f"{CUISINES[i % 4]}|{CUISINES[(i + 1) % 4]}"
        yield _item(i), f"Dish {i}", cuisines, 10 + 7 * i % 90, START_S - i * DAY_S


def _users() -> Iterable[tuple[Any, ...]]:
    for user in range(USERS):
        yield f"u{user}", DIETS[user % 3]


def _events() -> Iterable[tuple[Any, ...]]:
    draw = random.Random(0)
    for user in range(USERS):
        at = START_S + draw.randrange(DAY_S)
        for _ in range(SHOWN):
            at += draw.randrange(60, 2 * DAY_S)
            item = min(int(draw.expovariate(3 / ITEMS)), ITEMS - 1)
            mine = item % 4 == user % 4
            position = draw.randint(1, 10)
            row, seen = (f"u{user}", _item(item)), (position, at // 3600 % 24)
            yield *row, "shown", at, "", *seen
            if draw.random() < (0.7 if mine else 0.1) * (1 if position < 4 else 0.8):
                yield *row, "open", at + 20, "", *seen
                if draw.random() < (0.6 if mine else 0.2):
                    stars = draw.choice((4, 5) if mine else (1, 2, 3))
                    yield *row, "cook", at + 3600, stars, *seen
