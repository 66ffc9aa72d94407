"""What every feature store must hold; a backend is done when it passes."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import lmdb
import pytest
import redis

from feature_store import codec, reader
from feature_store.codec import RowStatus
from feature_store.connect import connect
from feature_store.interface import (
    FeatureStore,
    FeatureStoreUnavailable,
    FeatureStoreUnfit,
    GuardedWrite,
    RowKey,
)
from feature_store.urls import public
from models.schema import COUNTERS, COUNTERS_TTL_S, HISTORY, ITEM_DELIVERY, PROFILE, USER_DELIVERY
from tests.servers.redis import RedisServer, free_port, redis_server

NOW_MS = int(time.time() * 1000)  # Redis expires by the real clock
DEADLINE_S = 60.0
USER_GROUPS = (USER_DELIVERY, PROFILE, HISTORY)

spawn = multiprocessing.get_context("spawn")


def open_store(url: str, *, timeout_ms: float = 2_000.0, map_size_mb: int = 64) -> FeatureStore:
    return connect(url, timeout_ms=timeout_ms, lmdb_map_size_mb=map_size_mb)


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["lmdb", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL that names an empty store."""
    if request.param == "lmdb":
        return f"lmdb://{tmp_path}/features"
    server: RedisServer = request.getfixturevalue("shared_redis")
    server.flush()
    return server.url


@pytest.fixture
def store(url: str) -> Iterator[FeatureStore]:
    store = open_store(url)
    yield store
    store.close()


def user_write(
    user_id: str, expected_version: int, clicks: int, event_time_ms: int = NOW_MS
) -> GuardedWrite:
    """A write of all of a user's rows, each of which says `clicks`."""
    delivery, profile, history = (group.defaults() for group in USER_GROUPS)
    delivery["ring_next"] = profile["clicks"] = history["length"] = clicks
    records = {"user_delivery": delivery, "profile": profile, "history": history}
    return codec.guarded_write(user_id, USER_DELIVERY, expected_version, records, event_time_ms)


def user_keys(user_id: str) -> list[RowKey]:
    return [RowKey(group.name, user_id) for group in USER_GROUPS]


def clicks_of(rows: list[bytes | None]) -> list[int]:
    """What each of a user's rows says, in the order of user_keys."""
    fields = ("ring_next", "clicks", "length")
    return [
        int(reader.serve(group, row, NOW_MS).record[field])
        for group, row, field in zip(USER_GROUPS, rows, fields, strict=True)
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)  # between two looks: the writer needs the core


def test_what_was_written_is_read(store: FeatureStore) -> None:
    write = user_write("u1", 0, 3)
    assert store.write([write]) == [True]
    assert store.read(user_keys("u1")) == list(write.rows.values())


def test_rows_come_in_the_order_of_the_keys_and_missing_is_none(store: FeatureStore) -> None:
    writes = [user_write(f"u{i}", 0, i) for i in range(5)]
    store.write(writes)
    keys = [RowKey("profile", u) for u in ("u3", "nobody", "u0", "u3", "u4")]
    row = [write.rows["profile"] for write in writes]
    assert store.read(keys) == [row[3], None, row[0], row[3], row[4]]
    assert store.read([]) == []
    assert store.write([]) == []


async def test_read_async_reads_what_read_reads(url: str) -> None:
    store = open_store(url)
    try:
        store.write([user_write("u1", 0, 3)])
        keys = [*user_keys("u1"), RowKey("profile", "nobody")]
        assert await store.read_async(keys, 1.0) == store.read(keys)
        assert await store.read_async([], 1.0) == []
    finally:
        await store.close_async()


def test_a_stale_version_is_refused_and_changes_nothing(store: FeatureStore) -> None:
    assert store.write([user_write("u", 0, 1)]) == [True]
    before = store.read(user_keys("u"))
    for stale in (0, 2, 2**63, 2**64 - 1):
        assert store.write([user_write("u", stale, 9)]) == [False]
    assert store.read(user_keys("u")) == before
    assert store.write([user_write("u", 1, 2)]) == [True]
    assert clicks_of(store.read(user_keys("u"))) == [2, 2, 2]


def test_versions_beyond_what_a_double_holds_are_compared_exactly(store: FeatureStore) -> None:
    records = {"user_delivery": USER_DELIVERY.defaults()}
    big = 2**53
    row = codec.encode(USER_DELIVERY, records["user_delivery"], NOW_MS, big + 1)
    assert store.write([GuardedWrite("u", "user_delivery", 0, {"user_delivery": row})]) == [True]
    again = codec.guarded_write("u", USER_DELIVERY, big, records, NOW_MS)
    assert store.write([again]) == [False]
    again = codec.guarded_write("u", USER_DELIVERY, big + 1, records, NOW_MS)
    assert store.write([again]) == [True]


def test_a_refused_write_does_not_hold_up_the_others(store: FeatureStore) -> None:
    store.write([user_write("b", 0, 1)])
    writes = [user_write("a", 0, 5), user_write("b", 0, 5), user_write("c", 0, 5)]
    assert store.write(writes) == [True, False, True]
    seen = [clicks_of(store.read(user_keys(u)))[0] for u in "abc"]
    assert seen == [5, 1, 5]


def test_writes_of_one_call_see_each_other(store: FeatureStore) -> None:
    assert store.write([user_write("u", 0, 1), user_write("u", 0, 2), user_write("u", 1, 3)]) == [
        True,
        False,
        True,
    ]
    assert clicks_of(store.read(user_keys("u"))) == [3, 3, 3]


def test_a_batch_larger_than_a_round_trip_is_written_whole(store: FeatureStore) -> None:
    writes = [user_write(f"u{i}", 0, i) for i in range(300)]
    assert store.write(writes) == [True] * 300
    rows = store.read([RowKey("profile", f"u{i}") for i in range(300)])
    assert rows == [write.rows["profile"] for write in writes]


def test_a_damaged_guard_row_can_be_replaced(store: FeatureStore) -> None:
    store.write([GuardedWrite("u", "user_delivery", 0, {"user_delivery": b"\x07" * 40})])
    (damaged,) = store.read([RowKey("user_delivery", "u")])
    assert store.write([user_write("u", codec.row_version(damaged), 4)]) == [True]
    assert clicks_of(store.read(user_keys("u"))) == [4, 4, 4]


def test_a_guard_row_too_short_for_a_version_counts_as_version_zero(store: FeatureStore) -> None:
    store.write([GuardedWrite("u", "user_delivery", 0, {"user_delivery": b"\xff" * 20})])
    assert store.write([user_write("u", 1, 4)]) == [False]
    assert store.write([user_write("u", 0, 4)]) == [True]


IDS = [
    "x" * 256,
    "é" * 128,
    "日本" * 42,
    "a:b:c",
    "{a}",
    "}{",
    "}",
    "profile:u",
    "a b\n\x00\x7f",
    "%s*?[^a]",
]


def test_ids_of_any_bytes_stay_apart(store: FeatureStore) -> None:
    assert store.write([user_write(u, 0, i + 1) for i, u in enumerate(IDS)]) == [True] * len(IDS)
    for i, user_id in enumerate(IDS):
        assert clicks_of(store.read(user_keys(user_id))) == [i + 1] * 3


def test_a_user_and_an_item_of_the_same_id_stay_apart(store: FeatureStore) -> None:
    item = codec.guarded_write(
        "7",
        ITEM_DELIVERY,
        0,
        {"item_delivery": ITEM_DELIVERY.defaults(), "counters": COUNTERS.defaults()},
        NOW_MS,
    )
    assert store.write([user_write("7", 0, 1), item]) == [True, True]
    assert clicks_of(store.read(user_keys("7"))) == [1, 1, 1]
    assert store.read([RowKey("counters", "7")]) == [item.rows["counters"]]


def test_an_expired_row_never_comes_back_as_fresh(store: FeatureStore) -> None:
    def item_write(item_id: str, event_time_ms: int) -> GuardedWrite:
        counters = COUNTERS.defaults()
        counters["views"] = 5
        records = {"item_delivery": ITEM_DELIVERY.defaults(), "counters": counters}
        return codec.guarded_write(item_id, ITEM_DELIVERY, 0, records, event_time_ms)

    ttl_ms = int(COUNTERS_TTL_S * 1000)
    times = {"old": NOW_MS - ttl_ms - 60_000, "live": NOW_MS - ttl_ms + 3_600_000, "ancient": 1}
    assert store.write([item_write(i, t) for i, t in times.items()]) == [True] * 3

    def statuses() -> list[RowStatus]:
        rows = store.read([RowKey("counters", item_id) for item_id in times])
        return [reader.serve(COUNTERS, row, NOW_MS).status for row in rows]

    gone = {RowStatus.EXPIRED, RowStatus.MISSING}
    old, live, ancient = statuses()
    assert old in gone
    assert ancient in gone
    assert live is RowStatus.FRESH
    store.sweep(NOW_MS)
    assert statuses() == [RowStatus.MISSING, RowStatus.FRESH, RowStatus.MISSING]


def test_clearing_deletes_every_row_of_the_groups_and_no_other(url: str) -> None:
    store = open_store(url)
    users = [*IDS, *(f"u{i}" for i in range(1_500))]
    store.write([user_write(user_id, 0, 1) for user_id in users])
    counters = {"item_delivery": ITEM_DELIVERY.defaults(), "counters": COUNTERS.defaults()}
    store.write([codec.guarded_write("u1", ITEM_DELIVERY, 0, counters, NOW_MS)])
    assert store.clear({"profile", "history"}) == 2 * len(users)
    assert store.clear({"profile", "history"}) == 0
    for user_id in users:
        delivery, *others = store.read(user_keys(user_id))
        assert delivery is not None
        assert others == [None, None]
    assert None not in store.read([RowKey("item_delivery", "u1"), RowKey("counters", "u1")])
    store.close()


def count_up(url: str, times: int) -> None:
    """Add `times` clicks to user u, each by a guarded read-modify-write."""
    store = open_store(url)
    done = 0
    while done < times:
        rows = store.read(user_keys("u"))
        (clicks, *_) = clicks_of(rows)
        done += store.write([user_write("u", codec.row_version(rows[0]), clicks + 1)])[0]
    store.close()


def test_guarded_writers_in_several_processes_lose_no_update(url: str) -> None:
    writers = [spawn.Process(target=count_up, args=(url, 25)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(DEADLINE_S)
        assert writer.exitcode == 0
    store = open_store(url)
    rows = store.read(user_keys("u"))
    store.close()
    assert clicks_of(rows) == [75, 75, 75]
    assert {codec.row_version(row) for row in rows} == {75}


def write_for_ever(url: str) -> None:
    store = open_store(url)
    users = [f"u{i}" for i in range(20)]
    version = codec.row_version(store.read(user_keys("u0"))[0])
    while True:
        store.write([user_write(user, version, (version + 1) % 200) for user in users])
        version += 1


def test_a_killed_writer_leaves_whole_rows_and_an_open_door(url: str) -> None:
    store = open_store(url)
    for round_ in range(3):
        (row, *_) = store.read(user_keys("u0"))
        start = codec.row_version(row)
        writer: BaseProcess = spawn.Process(target=write_for_ever, args=(url,))
        writer.start()
        goal = start + 5 + round_
        wait_until(lambda goal=goal: codec.row_version(store.read(user_keys("u0"))[0]) >= goal)
        writer.kill()
        writer.join(DEADLINE_S)
        for i in range(20):
            rows = store.read(user_keys(f"u{i}"))
            assert len({codec.row_version(row) for row in rows}) == 1
            assert len(set(clicks_of(rows))) == 1

    def written() -> bool:
        version = codec.row_version(store.read(user_keys("u19"))[0])
        return store.write([user_write("u19", version, 1)]) == [True]

    # A commit that was whole when its writer died may surface with the next write, which finds its
    # guard refused then, as by any other writer.
    assert written() or written()
    store.close()


def test_a_closed_store_can_be_opened_again(url: str) -> None:
    first = open_store(url)
    first.write([user_write("u", 0, 6)])
    first.close()
    first.close()
    second = open_store(url)
    assert clicks_of(second.read(user_keys("u"))) == [6, 6, 6]
    second.close()


def test_two_stores_of_one_process_share_their_rows(url: str) -> None:
    first, second = open_store(url), open_store(url)
    first.write([user_write("u", 0, 6)])
    first.close()
    assert clicks_of(second.read(user_keys("u"))) == [6, 6, 6]
    second.close()


@pytest.mark.parametrize(
    "url",
    [
        *("", "lmdb://", "redis://", "mysql://x/y", "run/features"),
        *("redi://:hunter2@h:1/0", "redis:/:hunter2@h:1/0", "redis://:hunter2/x@h:1/0"),
        *("redis://:hunter2#x@h:1/0", "redis://:[hunter2@h:1/0", "redis://u:hunter2@h:hunter2/0"),
    ],
)
def test_an_unknown_url_is_refused_with_the_accepted_ones_and_without_its_password(
    url: str,
) -> None:
    with pytest.raises(ValueError, match=r"lmdb://.*redis://.*rediss://.*unix://") as refused:
        open_store(url)
    assert "hunter2" not in str(refused.value).replace("h:hunter2", "")
    assert refused.value.__cause__ is None


# What only LMDB can get wrong.


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


# What only a server can do: be away, hang, come back.


async def expect_unavailable(store: FeatureStore) -> None:
    with pytest.raises(FeatureStoreUnavailable, match="Redis at"):
        store.read(user_keys("u"))
    with pytest.raises(FeatureStoreUnavailable, match="Redis at"):
        store.write([user_write("u", 0, 1)])
    with pytest.raises(FeatureStoreUnavailable, match="Redis at"):
        await store.read_async(user_keys("u"), 1.0)


async def test_a_server_that_is_down_is_unavailable() -> None:
    store = open_store(f"redis://127.0.0.1:{free_port()}/0")
    await expect_unavailable(store)
    await store.close_async()


async def test_a_server_that_never_answers_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_store(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_ms=30.0)
        await expect_unavailable(store)
        await store.close_async()


async def test_a_read_ends_with_the_time_that_its_request_has_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_store(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_ms=60_000.0)
        with pytest.raises(FeatureStoreUnavailable, match="within 20 ms"):
            await store.read_async(user_keys("u"), 0.02)
        await store.close_async()


async def test_an_error_never_shows_the_password() -> None:
    store = open_store(f"redis://:hunter2@127.0.0.1:{free_port()}/0?password=hunter3")
    with pytest.raises(FeatureStoreUnavailable) as raised:
        store.read(user_keys("u"))
    assert "hunter" not in str(raised.value)
    await store.close_async()


@pytest.mark.redis
async def test_a_server_that_comes_back_is_used_again_by_the_next_call() -> None:
    with redis_server() as server:
        store = open_store(server.url)
        for _ in range(2):
            assert store.write([user_write("u", 0, 1)]) == [True]
            assert clicks_of(await store.read_async(user_keys("u"), 1.0)) == [1, 1, 1]
            server.stop()
            await expect_unavailable(store)
            server.start()  # empty: rows and function are gone
            assert store.read(user_keys("u")) == [None] * 3
            assert await store.read_async(user_keys("u"), 1.0) == [None] * 3
        assert store.write([user_write("u", 0, 1)]) == [True]
        server.stop()
        server.start()  # unnoticed: the next call meets a dead connection
        assert store.write([user_write("u", 0, 1)]) == [True]
        await store.close_async()


@pytest.mark.redis
def test_redis_drops_a_row_when_its_group_says_so(shared_redis: RedisServer) -> None:
    shared_redis.flush()
    store = open_store(shared_redis.url)
    store.write([user_write("u", 0, 1)])
    with redis.Redis.from_url(shared_redis.url) as client:
        keys = client.keys("*")
        expiries = {client.pexpiretime(key) for key in keys}
    store.close()
    assert len(keys) == 3
    assert expiries == {codec.expiry_ms(PROFILE, NOW_MS)}


# A server that will not do what is asked of it.


@pytest.mark.redis
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (['--rename-command FCALL ""'], r"version 7\.\d.* must be Redis 7.0 or newer"),
        (["--user default on nopass ~* &* +@all -fcall"], r"FCALL and FUNCTION LOAD allowed"),
        (["--user default on nopass ~* &* +@all -function"], r"FCALL and FUNCTION LOAD allowed"),
        (["--cluster-enabled yes"], r"a node of a Redis Cluster.*single server"),
    ],
    ids=["before 7.0", "FCALL forbidden", "FUNCTION forbidden", "cluster"],
)
def test_a_server_that_can_never_do_it_is_refused_with_what_it_needs(
    options: list[str], said: str
) -> None:
    # A cluster's own port would else lie 10,000 above the server's, which may be too high.
    own_port = ["--cluster-port", str(free_port())]
    given = [part for option in options for part in shlex.split(option)]
    with redis_server(*given, *own_port) as server:
        store = open_store(server.url)
        with pytest.raises(FeatureStoreUnfit, match=said) as refused:
            store.write([user_write("some user", 0, 1)])
        assert "some user" not in str(refused.value)
        store.close()


@pytest.mark.redis
def test_a_database_that_others_use_under_the_same_keys_is_refused(
    shared_redis: RedisServer,
) -> None:
    shared_redis.flush()
    store = open_store(shared_redis.url)
    with redis.Redis.from_url(shared_redis.url) as client:
        store.write([user_write("some user", 0, 1)])
        keys = client.keys("*")
        client.flushdb()
        for key in keys:
            client.rpush(key, b"a list of another application's")
        with pytest.raises(FeatureStoreUnfit, match="database of its own") as refused:
            store.write([user_write("some user", 0, 1)])
        assert "some user" not in str(refused.value)
    store.close()


@pytest.mark.redis
@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("maxmemory", "1", r"no memory left: raise its maxmemory"),
        ("replicaof", None, r"read-only replica: .* primary"),
    ],
)
def test_a_server_that_cannot_do_it_now_says_why_and_takes_it_later(
    setting: str, value: str | None, said: str
) -> None:
    with redis_server() as server, redis.Redis.from_url(server.url) as client:
        store = open_store(server.url)
        assert store.write([user_write("u", 0, 1)]) == [True]
        if value is None:
            client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        else:
            client.config_set(setting, value)
        with pytest.raises(FeatureStoreUnavailable, match=said) as raised:
            store.write([user_write("u", 1, 2)])
        assert not isinstance(raised.value, FeatureStoreUnfit)
        if value is None:
            client.execute_command("REPLICAOF", "NO", "ONE")
        else:
            client.config_set(setting, "0")
        assert store.write([user_write("u", 1, 2)]) == [True]
        store.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pass@h:1/0", "redis://h:1/0"),
        ("rediss://me:pass@h:1/0?password=pass", "rediss://h:1/0"),
        ("redis://h:1/0?password=p@pass", "redis://..."),
        ("redis://:pa?pass@h:1/0", "redis://..."),
        ("redis://:pa/pass#pass@h:1/0", "redis://h:1/0"),
        ("unix:///run/redis.sock?db=0&password=pass", "unix:///run/redis.sock"),
        ("kafka://me:pass@h:1,me:pass@i:2", "kafka://i:2"),
        ("lmdb:///home/me@h/features?", "lmdb:///home/me@h/features?"),
        ("me:pass@h", "h"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert public(url) == shown
