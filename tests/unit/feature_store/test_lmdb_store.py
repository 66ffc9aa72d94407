"""What only LMDB can get wrong: its map, its file, its readers."""

from __future__ import annotations

import os
import signal
import stat
from multiprocessing.synchronize import Event
from pathlib import Path

import lmdb
import pytest

from feature_store.interface import FeatureStoreUnavailable, FeatureStoreUnfit
from models.data.worlds.films.schema import PROFILE
from tests.contract.user_rows import (
    DEADLINE_S,
    NOW_MS,
    clicks_of,
    open_store,
    spawn,
    user_keys,
    user_write,
)


def test_a_relative_lmdb_url_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("lmdb://Run/features").close()
    assert (tmp_path / "Run/features/data.mdb").is_file()


def test_a_full_map_says_which_setting_to_raise_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = open_store(f"lmdb://{tmp_path}", map_size_mb=1)
    store.write([user_write("u", 0, 1)])
    with pytest.raises(FeatureStoreUnavailable, match="lmdb_map_size_mb"):
        store.write([user_write(f"v{i}", 0, 1) for i in range(500)])
    assert clicks_of(store.read(user_keys("u"))) == [1, 1, 1]
    assert store.read(user_keys("v0")) == [None] * 3
    store.close()


def damage(folder: Path, how: str) -> None:
    data = folder / "data.mdb"
    match how:
        case "cut off":
            os.truncate(data, data.stat().st_size // 2)
        case "another file":
            data.write_bytes(b"a page of something else" * 4096)


@pytest.mark.parametrize("how", ["cut off", "another file"])
def test_a_damaged_folder_is_refused_with_what_to_do(tmp_path: Path, how: str) -> None:
    url = f"lmdb://{tmp_path}/features"
    fill(url, 500, 64)
    damage(tmp_path / "features", how)
    with pytest.raises(FeatureStoreUnfit, match=r"damaged .*move the folder away.*rebuild"):
        open_store(url)


def test_a_file_whose_last_pages_lmdb_never_wrote_is_whole(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path}"
    store = open_store(url)
    store.write([user_write(f"u{i}", 0, i) for i in range(100)])
    for version in (1, 2, 3):  # leaves pages free, which LMDB then looks at
        store.write([user_write("u7", version, 7)])
    store.close()
    with lmdb.open(str(tmp_path), map_size=2**24) as env:
        with env.begin(write=True) as txn:
            txn.put(b"taken and given back", bytes(100_000))
            txn.delete(b"taken and given back")
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    data = tmp_path / "data.mdb"
    assert data.stat().st_size < needed
    store = open_store(url)
    assert data.stat().st_size == needed
    assert clicks_of(store.read(user_keys("u7"))) == [7] * 3
    store.close()


def test_a_page_that_is_damaged_while_the_store_is_open_is_said(tmp_path: Path) -> None:
    store = open_store(f"lmdb://{tmp_path}/features")
    store.write([user_write(f"u{i}", 0, 1) for i in range(500)])
    with (tmp_path / "features" / "data.mdb").open("r+b") as file:
        size = file.seek(0, 2)
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 16)
    keys = [key for i in range(500) for key in user_keys(f"u{i}")]
    with pytest.raises(FeatureStoreUnfit, match=r"damaged .*move the folder away.*rebuild"):
        store.read(keys)
    store.close()


def test_what_is_made_anew_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    open_store(f"lmdb://{folder}").close()
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.iterdir())}
    assert modes == {"features": 0o700, "data.mdb": 0o600, "lock.mdb": 0o600}


def hold_a_read(url: str, reading: Event) -> None:
    store = open_store(url, map_size_mb=1)
    with store._transaction(write=False) as txn:
        txn.get(b"profile:u")
        reading.set()
        signal.pause()


def test_what_a_killed_reader_has_pinned_is_freed_before_the_map_is_full(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path}"
    store = open_store(url, map_size_mb=1)
    store.write([user_write(f"u{i}", 0, 1) for i in range(20)])
    reading = spawn.Event()
    reader_process = spawn.Process(target=hold_a_read, args=(url, reading))
    reader_process.start()
    assert reading.wait(DEADLINE_S)
    reader_process.kill()
    reader_process.join(DEADLINE_S)
    for version in range(1, 50):
        assert all(store.write([user_write(f"u{i}", version, 1) for i in range(20)]))
    store.close()


def fill(url: str, users: int, map_size_mb: int) -> None:
    store = open_store(url, map_size_mb=map_size_mb)
    store.write([user_write(f"u{i}", 0, 1) for i in range(users)])
    store.close()


def test_a_map_that_another_process_grew_is_adopted(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path}"
    store = open_store(url, map_size_mb=1)
    writer = spawn.Process(target=fill, args=(url, 500, 16))
    writer.start()
    writer.join(DEADLINE_S)
    assert writer.exitcode == 0
    assert clicks_of(store.read(user_keys("u499"))) == [1, 1, 1]
    assert store.write([user_write("u499", 1, 2)]) == [True]
    store.close()


def test_sweep_deletes_exactly_the_expired_rows(tmp_path: Path) -> None:
    store = open_store(f"lmdb://{tmp_path}")
    old_ms = NOW_MS - int(PROFILE.ttl_s * 1000) - 1
    store.write([user_write(f"old{i}", 0, 1, old_ms) for i in range(400)])
    store.write([user_write("live", 0, 1, old_ms + 1)])
    assert store.sweep(NOW_MS) == 3 * 400
    assert store.sweep(NOW_MS) == 0
    assert store.read(user_keys("old7")) == [None] * 3
    assert clicks_of(store.read(user_keys("live"))) == [1, 1, 1]
    store.close()


def test_rows_of_another_application_are_left_alone(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=2**20) as env, env.begin(write=True) as transaction:
        for key in (b"\xff\xfe", b":", b"profile", b"\xff:user"):
            transaction.put(key, b"theirs")
    store = open_store(f"lmdb://{tmp_path}")
    assert store.sweep(NOW_MS) == 0
    assert store.clear([PROFILE.name]) == 0
    store.write([user_write("u", 0, 1)])
    assert clicks_of(store.read(user_keys("u"))) == [1, 1, 1]
    store.close()


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FeatureStoreUnavailable, match="cannot open"):
        open_store(f"lmdb://{tmp_path}/file/features")
