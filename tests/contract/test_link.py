"""One suite for all links: what is sent arrives, in order, and comes again until it is acknowledged."""

import time
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest

from omnid.errors import OmnidError, Rejected, Retryable
from omnid.link import message
from omnid.link.embedded import EmbeddedLink
from omnid.link.endpoint import Holder
from omnid.link.interface import EMBEDDED, Link, LinkDown, LinkFull, Poison
from omnid.link.message import COMMANDS, MESSAGE_BYTES_MAX, Codec
from omnid.link.redis_keys import Keys
from omnid.model import Cancel
from tests.contract.links import (
    KINDS,
    WAIT_S,
    Kit,
    command,
    kit_of,
    names,
    occupy,
    pinged,
    refused,
    result,
    sifted,
    take,
    until_ping,
)
from tests.fakes.brokers import Broker, free_port
from tests.fakes.proxy import proxied

pytestmark = pytest.mark.anyio

KEY = "a key of 16 bytes and more"
FROZEN_S = 1.0
LEASE_S = 2.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Embedded:
    """Both ends of the link that needs no broker."""

    runner_name = EMBEDDED

    def __init__(self) -> None:
        self.link = EmbeddedLink()

    def runner(self) -> Link:
        return self.link

    daemon = runner


@pytest.fixture(params=["embedded", *KINDS])
def any_kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Any:
    return Embedded() if request.param == "embedded" else kit_of(request, brokers)


async def test_messages_arrive_whole_and_in_order_and_once_they_are_acknowledged_no_more(any_kit: Any) -> None:
    sent = [*map(command, range(100)), Cancel("a7"), command(100, stdin="ß\0✓\n" * 100_000)]
    async with any_kit.daemon() as daemon, any_kit.runner() as runner:
        await daemon.send(any_kit.runner_name, sent[:50])
        await daemon.send(any_kit.runner_name, sent[50:])
        received = await take(runner, len(sent))
        assert [one.message for one in received] == sent
        await runner.ack(received)
        await runner.ping()
        await daemon.send(any_kit.runner_name, [command(101)])
        assert names(await take(runner, 1)) == ["a101"]


async def test_what_is_sent_twice_comes_twice(any_kit: Any) -> None:
    async with any_kit.daemon() as daemon, any_kit.runner() as runner:
        for _ in range(2):
            await daemon.send(any_kit.runner_name, [command(1)])
        assert names(await take(runner, 2)) == ["a1", "a1"]


async def test_results_come_back(kit: Kit) -> None:
    async with kit.daemon() as daemon, kit.runner() as runner:
        await runner.send(kit.daemon_name, [result(1), result(2)])
        received = await take(daemon, 2)
        assert [(one.message, one.sender) for one in received] == [(result(n), kit.runner_name) for n in (1, 2)]


async def test_what_is_sent_to_somebody_who_is_away_waits_for_him(kit: Kit) -> None:
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(1), command(2)])
    assert await kit.broker.held(kit.runner_name) == 2
    async with kit.runner() as runner:
        assert names(await take(runner, 2)) == ["a1", "a2"]


async def test_what_was_not_acknowledged_comes_again_and_nothing_else(kit: Kit) -> None:
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(number) for number in range(5)])
        async with kit.runner(batch_max=3) as runner:
            first = await take(runner, 1)
            await runner.ack(first[:1])
        async with kit.runner(batch_max=3) as runner:
            assert await all_of(runner, 4) == ["a1", "a2", "a3", "a4"]
    assert await kit.broker.held(kit.runner_name) == 0


async def test_what_is_acknowledged_out_of_order_takes_nothing_else_with_it(kit: Kit) -> None:
    async with kit.daemon() as daemon, kit.runner() as first:
        await daemon.send(kit.runner_name, [command(number) for number in range(7)])
        received = await take(first, 7)
        for some in (received[3:4], received[:2], received[4:5], received[2:3]):
            await first.ack(some)
        await first.refuse(received[5], "nobody knows its executor")
        await first.ping()
    async with kit.runner() as second:
        assert names(await take(second, 1)) == ["a6"]


async def test_what_is_refused_is_set_aside_and_holds_up_nobody(kit: Kit) -> None:
    async with kit.daemon() as daemon, kit.runner() as runner:
        await daemon.send(kit.runner_name, [command(1), command(2)])
        received = await take(runner, 2)
        await runner.refuse(received[0], "nobody knows its executor")
        await runner.ack(received[1:])
    assert await kit.broker.held(kit.runner_name) == 0
    assert [message_of(kit, data).attempt_id for data in await dead(kit, 1)] == ["a1"]
    assert "nobody knows its executor" in kit.logged.getvalue()


def message_of(kit: Kit, data: bytes) -> Any:
    return Codec("cable", kit.runner_name, COMMANDS).decode(data)[1]


async def dead(kit: Kit, count: int) -> list[bytes]:
    """Waits for that many messages to be set aside: RabbitMQ moves them in its own time."""
    found: list[bytes] = []
    with anyio.fail_after(WAIT_S):
        while len(found) < count:
            found += await kit.broker.dead(kit.runner_name)
    return found


async def test_what_is_no_message_for_this_end_is_set_aside(kit: Kit) -> None:
    near = Codec("cable", "near", {}, KEY)
    good = near.encode(kit.runner_name, [command(1)])[0]
    later = msgspec.json.encode({"omnid": 2, "news": True})
    foreign = [
        (b"", "isn't omnid's"),
        (b"\xff\x00 hello", "isn't omnid's"),
        (b"[" * 100_000, "isn't omnid's"),
        (b'{"omnid": 1}', "isn't omnid's"),
        (later, "of version 2"),
        (near.encode("another", [command(1)])[0], "addressed to another"),
        (near.encode(kit.runner_name, [result(1)])[0], "is a result"),
        (Codec("cable", "near", {}).encode(kit.runner_name, [command(1)])[0], "isn't signed"),
        (Codec("cable", "near", {}, "another key, long enough").encode(kit.runner_name, [command(1)])[0], "is wrong"),
        (good.replace(b'"true"', b'"rm"'), "is wrong"),
        (good.replace(b'"near"', b'"mine"'), "is wrong"),
        (Codec("cable", "N\n", {}, KEY).encode(kit.runner_name, [command(1)])[0], "no name"),
    ]
    async with kit.runner(key=KEY) as runner:
        for data, _ in foreign:
            await kit.broker.put(kit.runner_name, data)
        await kit.broker.put(kit.runner_name, good)
        received = await take(runner, len(foreign) + 1)
        poison = [one.message for one in received[:-1]]
        assert all(isinstance(one, Poison) for one in poison)
        assert [one.data for one in poison] == [data for data, _ in foreign]
        assert all(why in one.why for one, (_, why) in zip(poison, foreign, strict=True))
        assert [one.message for one in await sifted(runner, received)] == [command(1)]
        await runner.ack(received[-1:])
    assert sorted(await dead(kit, len(foreign))) == sorted(data for data, _ in foreign)
    said = kit.logged.getvalue()
    assert all(why in said for _, why in foreign)
    assert KEY not in said


async def test_one_that_is_too_large_is_refused_and_nothing_of_its_batch_is_sent(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message, "MESSAGE_BYTES_MAX", MESSAGE_BYTES_MAX >> 8)
    async with kit.daemon() as daemon:
        with pytest.raises(Rejected) as caught:
            await daemon.send(kit.runner_name, [command(1), command(2, stdin="x" * MESSAGE_BYTES_MAX)])
        assert caught.value.code == "message_refused"
        await daemon.send(kit.runner_name, [command(3)])
    assert await kit.broker.held(kit.runner_name) == 1


async def test_what_waits_unacknowledged_keeps_back_nothing_that_comes_later(kit: Kit) -> None:
    async with kit.daemon() as daemon, kit.runner(batch_max=4, held_max=20) as runner:
        await daemon.send(kit.runner_name, [*map(command, range(20)), Cancel("a7")])
        received = await take(runner, 21)
        assert received[-1].message == Cancel("a7")
        await runner.ack(received)


async def test_no_more_is_on_its_way_than_the_batch_says(kit: Kit) -> None:
    async with kit.daemon() as daemon, kit.runner(batch_max=10) as runner:
        await daemon.send(kit.runner_name, [command(number) for number in range(35)])
        assert await all_of(runner, 35, batch_max=10) == [f"a{number}" for number in range(35)]


async def all_of(runner: Link, count: int, batch_max: int = 3) -> list[str]:
    """Receives and acknowledges that many, as they come."""
    taken: list[str] = []
    with anyio.fail_after(WAIT_S):
        while len(taken) < count:
            received = await runner.receive()
            assert len(received) <= batch_max
            taken += names(received)
            await runner.ack(received)
    return taken


async def test_a_frozen_broker_is_told_from_one_that_is_there(kit: Kit) -> None:
    async with kit.daemon(timeout_s=FROZEN_S) as daemon:
        await daemon.ping()
        kit.broker.freeze()
        try:
            for call in (daemon.ping, lambda: daemon.send(kit.runner_name, [command(1)])):
                with pytest.raises(LinkDown) as caught, anyio.fail_after(FROZEN_S * 3):
                    await call()
                assert "no answer" in caught.value.what
            assert isinstance(await refused(kit.daemon(timeout_s=FROZEN_S)), LinkDown)
        finally:
            kit.broker.thaw()
    async with kit.daemon() as daemon:
        await daemon.ping()


async def test_where_the_confirmation_is_lost_it_may_be_there_and_is_sent_again(kit: Kit) -> None:
    async with proxied(kit.broker.port) as proxy:
        url = f"{kit.broker.scheme}://127.0.0.1:{proxy.port}"
        async with kit.daemon(url=url) as daemon:
            await daemon.send(kit.runner_name, [command(0)])
            async with anyio.create_task_group() as group:
                group.start_soon(lose, proxy)
                proxy.mute()
                with pytest.raises(LinkDown):
                    await daemon.send(kit.runner_name, [command(1)])
        async with kit.daemon(url=url) as daemon, kit.runner() as runner:
            await daemon.send(kit.runner_name, [command(1)])
            received = await take(runner, 3)
            assert names(received) == ["a0", "a1", "a1"]


async def lose(proxy: Any) -> None:
    await proxy.request()
    await proxy.cut()


async def test_a_kill_in_the_middle_of_sending_loses_nothing_that_was_confirmed(kit: Kit) -> None:
    confirmed = 0

    async def send(daemon: Link) -> None:
        nonlocal confirmed
        with pytest.raises(LinkDown):
            while True:
                await daemon.send(kit.runner_name, [command(confirmed), command(confirmed + 1)])
                confirmed += 2
                if confirmed >= 10:
                    going.set()

    going = anyio.Event()
    async with kit.daemon() as daemon, kit.runner() as runner:
        with anyio.fail_after(WAIT_S):
            async with anyio.create_task_group() as group:
                group.start_soon(send, daemon)
                group.start_soon(broken, runner)
                await going.wait()
                kit.broker.kill()
        with pytest.raises(LinkDown):
            await daemon.ping()
    await anyio.to_thread.run_sync(kit.broker.start)
    async with kit.runner() as runner, kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(9_999)])
        came: list[str] = []
        with anyio.fail_after(WAIT_S):
            while "a9999" not in came:
                received = await runner.receive()
                came += names(received)
                await runner.ack(received)
    wanted = [f"a{number}" for number in range(confirmed)]
    assert came[:confirmed] == wanted
    assert set(came[confirmed:]) <= {f"a{confirmed}", f"a{confirmed + 1}", "a9999"}


async def broken(runner: Link) -> None:
    """Receives and acknowledges nothing until the broker is gone."""
    with pytest.raises(LinkDown):
        while True:
            await runner.receive()


async def test_over_tls_the_broker_is_known_by_its_certificate(kit: Kit) -> None:
    ca = str(kit.broker.certificate)
    async with kit.daemon(url=kit.broker.tls_url, ca=ca) as daemon:
        await daemon.ping()
    assert "certificate" in (await refused(kit.daemon(url=kit.broker.tls_url))).what.lower()
    error = await refused(kit.daemon(url=kit.broker.tls_url, ca="/no/such/file"))
    assert "can't be read" in error.what


async def test_a_link_that_can_not_be_used_says_why(kit: Kit) -> None:
    other = {"redis": "amqp", "rabbitmq": "redis"}[kit.kind]
    place = {"redis": "/x", "rabbitmq": "/nowhere"}[kit.kind]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"password": "wrong-password"}, "says:"),
        ({"url": f"{other}://127.0.0.1"}, "begins with none of"),
        ({"url": f"{kit.broker.scheme}://u:p@127.0.0.1"}, "stand beside it"),
        ({"url": f"{kit.broker.scheme}://127.0.0.1:x"}, "can't be read"),
        ({"url": kit.broker.url + place}, "database" if kit.kind == "redis" else "virtual host"),
    ]
    for fields, why in cases:
        error = await refused(kit.daemon(**fields))
        assert error.code == "link_refused"
        assert why in error.what
        assert "wrong-password" not in str(error)
    error = await refused(kit.daemon(url=f"{kit.broker.scheme}://127.0.0.1:{free_port()}"))
    assert isinstance(error, LinkDown)


async def test_a_name_is_taken_by_one_alone_and_free_when_he_says_goodbye(kit: Kit) -> None:
    other = Holder("another-ledger", "gpu.example, process 12")
    async with kit.daemon() as daemon, kit.runner(holder=other) as first:
        await daemon.send(kit.runner_name, [command(1)])
        error = await refused(kit.runner())
        assert (error.code, isinstance(error, LinkDown)) == ("name_taken", True)
        assert "gpu.example, process 12" in error.what
        assert names(await take(first, 1)) == ["a1"]
        await first.ping()
    async with kit.runner() as second:
        assert names(await take(second, 1)) == ["a1"]
        assert (await refused(kit.runner(holder=other))).code == "name_taken"


async def test_who_has_died_finds_his_name_free_at_once_and_others_after_the_lease(kit: Kit) -> None:
    async with proxied(kit.broker.port) as proxy:
        ours = {"url": f"{kit.broker.scheme}://127.0.0.1:{proxy.port}", "lease_s": LEASE_S}
        for process in (1, 2):
            async with kit.runner(holder=Holder("ledger", f"host, process {process}"), **ours) as runner:
                await runner.ping()
                muted_s = time.monotonic()
                proxy.mute()  # Its goodbye doesn't get through.
            await proxy.cut()
        with anyio.fail_after(WAIT_S):
            while (error := await refused_or_none(kit.runner())) is not None:
                assert error.code == "name_taken"
                assert "host, process 2" in error.what
        if kit.kind == "redis":  # RabbitMQ sees the connection end.
            assert time.monotonic() - muted_s > LEASE_S / 2


async def refused_or_none(link: Link) -> OmnidError | None:
    try:
        async with link:
            return None
    except OmnidError as error:
        return error


async def test_who_has_lost_his_name_hears_of_it(brokers: Callable[[str], Broker]) -> None:
    kit = Kit("redis", brokers("redis"), "lost")
    async with kit.runner() as runner:
        with kit.broker.client() as client:
            client.set(Keys.of(kit.runner_name).lease, "another-ledger elsewhere, process 3")
        for become in (kit.broker.clear, kit.broker.fill):
            become()
            with pytest.raises(LinkDown) as caught:
                await runner.ping()
            assert "taken by elsewhere, process 3" in caught.value.what
        kit.broker.clear()
    with kit.broker.client() as client:
        assert client.delete(Keys.of(kit.runner_name).lease) == 1  # It is still the other's.


async def test_a_name_that_a_full_server_can_not_write_down_is_not_had(brokers: Callable[[str], Broker]) -> None:
    kit = Kit("redis", brokers("redis"), "nameless")
    async with kit.runner() as known:
        assert known.name_s > 0
    kit.broker.fill()
    try:
        other = kit.runner(holder=Holder("another-ledger", "gpu.example, process 12"))
        async with kit.runner() as one, other as another:
            for link in (one, another):
                assert isinstance(await pinged(link), LinkFull)
                assert link.name_s == 0
            kit.broker.clear()
            assert await pinged(one) is None
            assert one.name_s > 0
            with pytest.raises(LinkDown) as caught:
                await another.ping()
            assert (caught.value.code, another.name_s) == ("name_taken", 0)
            kit.broker.fill()
            assert isinstance(await pinged(one), LinkFull)
            assert one.name_s > 0, "what was written down can be kept"
    finally:
        kit.broker.clear()


async def test_who_has_lost_his_name_does_not_prolong_the_lease_of_another(brokers: Callable[[str], Broker]) -> None:
    kit = Kit("redis", brokers("redis"), "prolonged")
    async with kit.runner() as runner:
        with kit.broker.client() as client:
            client.set(Keys.of(kit.runner_name).lease, "another-ledger elsewhere, process 3", px=5_000)
            with pytest.raises(LinkDown):
                await runner.ping()
            assert client.pttl(Keys.of(kit.runner_name).lease) <= 5_000


async def test_a_full_broker_takes_nothing_and_still_gives_what_it_has(kit: Kit) -> None:
    async with kit.daemon(timeout_s=FROZEN_S) as daemon:
        async with kit.runner() as runner:  # It is known there.
            await runner.ping()
        await daemon.send(kit.runner_name, [command(1)])
        await kit.broker.put(kit.runner_name, b"not ours")
        await daemon.send(kit.runner_name, [command(2)])
        await anyio.to_thread.run_sync(kit.broker.fill)
        try:
            await until_ping(daemon, LinkFull)
            with pytest.raises(LinkFull) as refused:
                await daemon.send(kit.runner_name, [command(3)])
            assert refused.value.code == "link_full"
            # Who comes now is let in too: what it takes out is what makes room.
            async with kit.runner(timeout_s=3 * FROZEN_S) as runner:
                await runner.ack(await sifted(runner, await take(runner, 3)))
        finally:
            await anyio.to_thread.run_sync(kit.broker.clear)
        await until_ping(daemon, None)
        await daemon.send(kit.runner_name, [command(4)])
        async with kit.runner() as runner:
            came: list[str] = []
            while "a4" not in came:  # What was on its way when it got full may have come through.
                received = await sifted(runner, await take(runner, 1))
                await runner.ack(received)
                came += names(received)
        assert await dead(kit, 1) == [b"not ours"]


async def test_what_belongs_to_another_program_is_left_alone(kit: Kit) -> None:
    await occupy(kit, kit.daemon_name)
    error = await refused(kit.daemon())
    assert error.code == "link_refused"
    assert {"redis": "is another program's: a string", "rabbitmq": "says:"}[kit.kind] in error.what
    async with kit.runner() as runner:
        with pytest.raises(Retryable) as caught:  # It waits until somebody has cleared that up, and nothing else does.
            await runner.send(kit.daemon_name, [result(1)])
        assert (type(caught.value), caught.value.code) == (Retryable, "delivery_failed")
        await runner.ping()
        await runner.send(f"{kit.daemon_name}-2", [result(1)])


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("kind", KINDS)
async def test_on_another_backend_it_is_refused(kind: str, anyio_backend: str) -> None:
    class Nowhere(Broker):
        scheme = "redis"

        def __init__(self) -> None:
            self.port, self.password = 1, ""

    error = await refused(Kit(kind, Nowhere(), "trio").daemon())
    assert "needs asyncio" in error.what
