"""What only a server can do: be away, hang, come back, refuse what is asked of it."""

from __future__ import annotations

import shlex
import socket

import pytest
import redis

from feature_store import codec
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, FeatureStoreUnfit
from models.data.worlds.films.schema import PROFILE
from tests.contract.user_rows import NOW_MS, clicks_of, open_store, user_keys, user_write
from tests.servers.redis import RedisServer, free_port, redis_server


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


@pytest.mark.redis
def test_keys_begin_with_the_name_of_the_installation_where_it_has_one(
    shared_redis: RedisServer,
) -> None:
    shared_redis.flush()
    for installation in (None, "shop"):
        store = open_store(shared_redis.url, installation=installation)
        store.write([user_write("u", 0, 1)])
        store.close()
    with redis.Redis.from_url(shared_redis.url) as client:
        keys = client.keys("*profile")
    assert sorted(keys) == [b"shop:{user:u}:profile", b"{user:u}:profile"]


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
