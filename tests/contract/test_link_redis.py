"""Redis alone: keys that other programs have, servers that are too old, rights that are missing, what is set aside."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from omnid.errors import Retryable
from omnid.link import redis
from omnid.link.interface import Poison
from omnid.link.redis_keys import GROUP, Keys
from tests.contract.links import Kit, command, kit_of, names, refused, sifted, take
from tests.fakes.brokers import Broker, Redis

pytestmark = pytest.mark.anyio

Put = Callable[[Any, str], object]
"""Puts something of another program under a key."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["redis"])
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    return kit_of(request, brokers)


def stream(*entries: dict[str, str]) -> Put:
    """A stream with these entries."""

    def put(client: Any, key: str) -> None:
        for entry in entries:
            client.xadd(key, entry)

    return put


def with_group(client: Any, key: str) -> None:
    client.xadd(key, {"m": "theirs"})
    client.xgroup_create(key, "workers", "0")


def emptied(client: Any, key: str) -> None:
    client.xdel(key, client.xadd(key, {"job": "1"}))


THEIRS: dict[str, tuple[Put, str]] = {
    "string": (lambda client, key: client.set(key, "theirs"), "a string"),
    "list": (lambda client, key: client.rpush(key, "theirs"), "a list"),
    "stream": (stream({"job": "1"}), "isn't omnid's"),
    "stream-that-began-as-ours": (stream({"m": "1"}, {"m": "2", "job": "1"}), "isn't omnid's"),
    "stream-that-ends-as-ours": (stream({"job": "1"}, {"m": "2"}), "isn't omnid's"),
    "stream-of-a-group": (with_group, "the group 'workers'"),
    "emptied-stream": (emptied, "without entries"),
}
OTHERS: dict[str, tuple[str, Put, str]] = {
    **{f"in-{name}": ("stream", *theirs) for name, theirs in THEIRS.items()},
    "dead-list": ("dead", *THEIRS["list"]),
    "dead-stream": ("dead", *THEIRS["stream"]),
    "lease-list": ("lease", *THEIRS["list"]),
    "lease-hash": ("lease", lambda client, key: client.hset(key, "theirs", "1"), "a hash"),
    "lease-string": ("lease", lambda client, key: client.set(key, "theirs, for ever"), "never ends"),
    "probe-list": ("probe", *THEIRS["list"]),
}


def state(kit: Kit) -> dict[bytes, tuple[bytes, bool]]:
    """All that the server has: what is under each key, and whether it ends."""
    with kit.broker.client() as client:
        return {key: (client.dump(key), client.pttl(key) >= 0) for key in client.scan_iter()}


@pytest.mark.parametrize(("which", "put", "what"), OTHERS.values(), ids=OTHERS)
async def test_a_key_of_another_program_is_named_and_left_as_it_is(kit: Kit, which: str, put: Put, what: str) -> None:
    key = getattr(Keys.of(kit.runner_name), which)
    with kit.broker.client() as client:
        client.flushall()
        put(client, key)
    before = state(kit)
    error = await refused(kit.runner())
    assert error.code == "link_refused"
    assert f"{key} on Redis is another program's: " in error.what
    assert what in error.what
    assert "give this end another name" in error.what
    assert state(kit) == before
    with kit.broker.client() as client:
        client.delete(key)
    async with kit.daemon() as daemon, kit.runner() as runner:
        await daemon.send(kit.runner_name, [command(1)])
        assert names(await take(runner, 1)) == ["a1"]
        await runner.ping()


@pytest.mark.parametrize(("put", "what"), THEIRS.values(), ids=THEIRS)
async def test_nothing_is_sent_into_what_another_program_has(kit: Kit, put: Put, what: str) -> None:
    key = Keys.of(kit.runner_name).stream
    with kit.broker.client() as client:
        client.flushall()
        put(client, key)
    async with kit.daemon() as daemon:
        before = state(kit)
        for batch in ([command(1)], [command(1), command(2)]):
            with pytest.raises(Retryable) as caught:
                await daemon.send(kit.runner_name, batch)
            assert (type(caught.value), caught.value.code) == (Retryable, "delivery_failed")
            assert f"{key} on Redis is another program's: " in caught.value.what
            assert what in caught.value.what
        assert state(kit) == before
        await daemon.send(f"{kit.runner_name}-2", [command(1)])
        with kit.broker.client() as client:
            client.delete(key)
        await daemon.send(kit.runner_name, [command(1)])
        async with kit.runner() as runner:
            assert names(await take(runner, 1)) == ["a1"]


async def test_what_others_sent_to_an_end_before_it_was_ever_there_is_its(kit: Kit) -> None:
    with kit.broker.client() as client:
        client.flushall()
    await kit.broker.put(kit.runner_name, b"not ours")  # Whoever has the format needs no more than XADD.
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(1)])
    async with kit.runner() as runner:
        received = await take(runner, 2)
        assert isinstance(received[0].message, Poison)
        assert names(await sifted(runner, received)) == ["a1"]
        await runner.ack(received[1:])
    assert await kit.broker.held(kit.runner_name) == 0


async def test_a_string_under_the_key_of_pings_is_left_as_it_is(kit: Kit) -> None:
    key = Keys.of(kit.runner_name).probe
    with kit.broker.client() as client:
        client.set(key, "theirs")
        async with kit.runner() as runner:
            await runner.ping()
        assert client.get(key) == b"theirs"


async def test_a_stream_is_looked_at_once_by_whoever_sends_to_it(kit: Kit) -> None:
    async with kit.daemon() as daemon:
        with kit.broker.client() as client:
            client.config_resetstat()
            for number in range(5):
                await daemon.send(kit.runner_name, [command(number)])
            calls = {name: said["calls"] for name, said in client.info("commandstats").items()}
    assert (calls["cmdstat_xadd"], calls["cmdstat_xinfo|groups"]) == (5, 1)


async def test_of_what_is_set_aside_the_last_is_kept(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "DEAD_MAX", 100)
    async with kit.runner() as runner:
        for number in range(250):
            await kit.broker.put(kit.runner_name, b"%d" % number)
        for one in await take(runner, 250):
            await runner.refuse(one, "why")
    assert await kit.broker.held(kit.runner_name) == 0
    kept = await kit.broker.dead(kit.runner_name)
    assert 100 <= len(kept) < 250
    assert kept == [b"%d" % number for number in range(250 - len(kept), 250)]


@pytest.mark.parametrize("has_group", [True, False])
async def test_what_an_end_has_set_aside_is_known_again_as_its_own(kit: Kit, has_group: bool) -> None:
    dead = Keys.of(kit.runner_name).dead
    for number in (1, 2):
        async with kit.runner() as runner:
            await kit.broker.put(kit.runner_name, b"%d" % number)
            await sifted(runner, await take(runner, 1))
        with kit.broker.client() as client:
            assert client.xlen(dead) == number
            if not has_group:
                assert client.xgroup_destroy(dead, GROUP) == 1
    assert await kit.broker.dead(kit.runner_name) == [b"1", b"2"]


async def test_a_database_that_is_not_there_is_told_from_a_server_that_is_away(kit: Kit) -> None:
    for path, what in (
        ("16", "DB index is out of range; the path of its URL is the number of a database that Redis has"),
        ("x", "is the number of a database, and not x"),
        ("9" * 5_000, "is the number of a database, and not 999"),
    ):
        assert what in (await refused(kit.daemon(url=f"{kit.broker.url}/{path}"))).what


async def test_whose_rights_do_not_suffice_gives_his_name_back(kit: Kit) -> None:
    with kit.broker.client() as client:
        client.flushall()
        client.execute_command("ACL", "SETUSER", "few", "on", ">few", "~omnid:*", "+@all", "-xgroup")
        error = await refused(kit.daemon(user="few", password="few"))
        assert "NOPERM" in error.what
        assert client.keys() == []


def connected_to(port: int) -> Iterator[socket.socket]:
    """The sockets of this process that lead to a port."""
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
            if found.getpeername()[1:2] == (port,):
                yield found


async def test_a_connection_that_dies_without_a_word_is_noticed_within_a_minute(kit: Kit) -> None:
    """The one over which an end reads may wait for days, and nothing is sent over it: TCP itself must find out."""
    idle = socket.TCP_KEEPALIVE if sys.platform == "darwin" else socket.TCP_KEEPIDLE
    async with kit.runner():
        noticed_s: list[int] = []
        for one in connected_to(kit.broker.port):
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            names = (idle, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle_s, every_s, count = (one.getsockopt(socket.IPPROTO_TCP, name) for name in names)
            noticed_s.append(idle_s + every_s * count)
    assert len(noticed_s) == 2, "one that reads, and one for all else"
    assert max(noticed_s) < 60


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Kit]:
    """A server without the commands that came with Redis 5; it answers to them as those did which had none."""
    new = ("XACK", "XADD", "XDEL", "XGROUP", "XINFO", "XLEN", "XRANGE", "XREAD", "XREADGROUP", "XREVRANGE")

    class Redis4(Redis):
        settings = tuple(word for name in new for word in ("--rename-command", name, ""))

    broker = Redis4(tmp_path)
    try:
        broker.start()
        yield Kit("redis", broker, "old")
    finally:
        broker.close()


async def test_a_server_that_is_too_old_is_refused_and_nothing_stays_there(old: Kit) -> None:
    error = await refused(old.daemon())
    assert "unknown command" in error.what
    assert "Redis 5.0 or later is needed" in error.what
    assert state(old) == {}


async def test_what_another_of_its_name_has_read_meanwhile_is_read_again(kit: Kit) -> None:
    keys = Keys.of(kit.runner_name)
    async with kit.daemon() as daemon, kit.runner() as runner:
        await daemon.send(kit.runner_name, [command(1)])
        assert names(await take(runner, 1)) == ["a1"]
        with kit.broker.client() as client:
            client.delete(keys.lease)  # Its time was over, and another took the name, and lost it again.
            await daemon.send(kit.runner_name, [command(2)])
            client.xreadgroup(GROUP, kit.runner_name, {keys.stream: ">"})
        await runner.ping()
        await daemon.send(kit.runner_name, [command(3)])
        assert names(await take(runner, 3)) == ["a1", "a2", "a3"]


async def test_an_acknowledgement_that_was_cut_off_leaves_nothing_behind(kit: Kit) -> None:
    keys = Keys.of(kit.runner_name)
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(1), command(2)])
        async with kit.runner() as runner:
            (first, _) = await take(runner, 2)
        with kit.broker.client() as client:
            client.xdel(keys.stream, first.tag[0])  # What came through of it.
            async with kit.runner() as runner:
                again = await take(runner, 1)
                assert names(again) == ["a2"]
                await runner.ack(again)
            assert client.xpending(keys.stream, GROUP)["pending"] == 0
            assert client.xlen(keys.stream) == 0
