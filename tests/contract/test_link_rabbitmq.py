"""RabbitMQ alone: queues that confirm nothing, rights of users, what others have under our names, its config."""

import re
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from omnid.ctl.demo_broker import rabbitmq_program
from omnid.errors import Rejected, Retryable
from omnid.link import rabbitmq, rabbitmq_queues
from omnid.link.interface import Link, LinkDown, LinkFull
from omnid.link.rabbitmq_queues import queue_of
from tests.contract.links import WAIT_S, Kit, Watched, command, kit_of, names, refused, result, take
from tests.fakes.brokers import Broker, RabbitMQ
from tests.fakes.proxy import Proxy, proxied

pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]

DOCS = Path(__file__).parents[2] / "docs" / "links.md"
SECRET = "s3cret"
TIMEOUT_S = 2.0
BATCH = 64
"""As many as a daemon sends at once."""


@pytest.fixture(params=["rabbitmq"])
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    return kit_of(request, brokers)


def told(kit: Kit, *argv: str, stdin: str = "") -> str:
    """Runs a program of RabbitMQ's against the node."""
    program, *rest = argv
    ended = subprocess.run(
        [rabbitmq_program(program) or program, *rest],
        env=kit.broker._environ,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


async def evaluated(kit: Kit, erlang: str) -> str:
    return await anyio.to_thread.run_sync(told, kit, "rabbitmqctl", "eval", erlang)


async def stop(kit: Kit, name: str) -> None:
    """Takes its leader from the queue of an end, as a crash does that it doesn't survive."""
    said = await evaluated(kit, f"ra:stop_server(quorum_queues, {{'%2F_{queue_of(name)}', node()}}).")
    assert said.strip() == "ok"


async def outvote(kit: Kit, *ends: str) -> None:
    """Takes their majority from the queues of ends: each gets a second member, on a node that isn't there."""
    queues = ", ".join(f"'%2F_{queue_of(name)}'" for name in ends)
    adding = "{ok, _, _} = ra:add_member({Queue, node()}, {Queue, 'nowhere@localhost'})"
    await evaluated(kit, f"[{adding} || Queue <- [{queues}]].")


async def start(kit: Kit, name: str) -> None:
    said = await evaluated(kit, f"ra:restart_server(quorum_queues, {{'%2F_{queue_of(name)}', node()}}).")
    assert said.strip() == "ok"


async def unsent(link: Link, to: str, batch: list[Any]) -> str:
    """Sends to somebody who can't be sent to, while the link is up; gives why."""
    with pytest.raises(Retryable) as caught:
        await link.send(to, batch)
    assert (type(caught.value), caught.value.code) == (Retryable, "delivery_failed")
    return caught.value.what


async def until_sent(link: Link, to: str, batch: list[Any]) -> None:
    """Sends until it is taken, as it is sent again with each ping."""
    with anyio.fail_after(WAIT_S):
        while True:
            try:
                return await link.send(to, batch)
            except LinkDown:
                raise
            except Retryable:
                await link.ping()


async def test_a_queue_that_confirms_nothing_holds_up_itself_alone(kit: Kit) -> None:
    other, batch = f"{kit.runner_name}-2", [command(number) for number in range(BATCH)]
    ended: list[str] = []

    async def send_in_vain(daemon: Link) -> None:
        assert "confirms nothing" in await unsent(daemon, kit.runner_name, batch)
        ended.append("in vain")

    async with kit.daemon(timeout_s=TIMEOUT_S) as daemon:
        await daemon.send(kit.runner_name, [command(1_000)])
        await daemon.send(other, [command(0)])
        await stop(kit, kit.runner_name)
        async with anyio.create_task_group() as group:
            for _ in range(2):  # A command and a watch, say.
                group.start_soon(send_in_vain, daemon)
            for _ in range(20):
                await daemon.send(other, batch)
            await daemon.ping()
            ended.append("others")
        assert ended == ["others", "in vain", "in vain"]
        with anyio.fail_after(TIMEOUT_S):  # What is known needn't be found out anew.
            for _ in range(5):
                await unsent(daemon, kit.runner_name, [command(0)])
        await start(kit, kit.runner_name)
        await until_sent(daemon, kit.runner_name, batch)
    async with kit.runner() as runner:
        came = names(await take(runner, 1 + BATCH))
        assert came[0] == "a1000"
        assert came[-BATCH:] == names_of(batch)
        # Of what was asked by there was one message, and not a batch each time.
        assert set(came[1:-BATCH]) <= {"a0"}


def names_of(batch: list[Any]) -> list[str]:
    return [one.attempt_id for one in batch]


async def test_a_queue_that_stays_silent_is_asked_by_one_message_now_and_then(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "ASK_EVERY_S", 0.5)
    async with kit.daemon(timeout_s=0.5) as daemon:
        await daemon.send(kit.runner_name, [command(0)])
        await outvote(kit, kit.runner_name)
        outlet = daemon._outlets[kit.runner_name]
        channels: set[int] = set()
        with anyio.fail_after(WAIT_S):
            while len(channels) < 3:
                assert "confirms nothing" in await unsent(daemon, kit.runner_name, [command(1), command(2)])
                if outlet.channel is not None:
                    channels.add(outlet.channel.number)
                    assert outlet.channel.delivery_tag == 1
                await daemon.ping()


async def test_where_a_silent_queue_is_gone_it_is_made_anew_each_time(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "ASK_EVERY_S", 2 * WAIT_S)
    async with kit.daemon(timeout_s=1.0) as daemon:
        for number in (1, 2):
            await daemon.send(kit.runner_name, [command(0)])
            await stop(kit, kit.runner_name)
            await unsent(daemon, kit.runner_name, [command(number)])
            connection, channel = await kit.broker._channel()
            async with connection:
                await channel.queue_delete(queue_of(kit.runner_name))
            await until_sent(daemon, kit.runner_name, [command(number)])
        async with kit.runner() as runner:
            assert names(await take(runner, 1)) == ["a2"]


async def test_an_end_whose_own_queue_has_no_leader_is_down_and_says_why(kit: Kit) -> None:
    async with kit.daemon() as daemon:
        async with kit.runner() as runner:
            await runner.ping()
            await daemon.send(kit.runner_name, [command(1)])
            await stop(kit, kit.runner_name)
            with pytest.raises(LinkDown, match="has no leader"):
                await runner.ping()
        error = await refused(kit.runner())
        assert isinstance(error, LinkDown)
        assert f"{queue_of(kit.runner_name)} of this end: it has no leader" in error.what
        await daemon.ping()
        await start(kit, kit.runner_name)
        async with kit.runner() as runner:
            await runner.ping()
            assert names(await take(runner, 1)) == ["a1"]


async def test_an_end_whose_own_queue_has_no_majority_either_is_down_and_says_why(kit: Kit) -> None:
    async with kit.daemon(timeout_s=1.0) as daemon:
        await daemon.send(kit.runner_name, [command(1)])
        await outvote(kit, kit.runner_name, kit.daemon_name)
        await daemon.ping()  # Its leader is still there, so nothing shows before something is sent.
        with pytest.raises(LinkDown, match="has no leader"):
            await daemon.send(kit.runner_name, [command(2)])
    error = await refused(kit.daemon(timeout_s=1.0))
    assert isinstance(error, LinkDown)
    assert f"{queue_of(kit.daemon_name)} of this end" in error.what


ALARMS = {
    "disk": (("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", "1MB")),
    "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.4")),
}


@pytest.mark.parametrize("alarm", ALARMS)
async def test_an_alarm_degrades_a_link_that_goes_on_by_itself_when_it_is_over(kit: Kit, alarm: str) -> None:
    raised, over = ALARMS[alarm]
    watched = Watched(kit, timeout_s=TIMEOUT_S)
    connection = watched.connection

    async def until(full: bool) -> None:
        with anyio.fail_after(WAIT_S):
            while (connection.full is not None) != full:
                watched.changed = anyio.Event()
                await watched.changed.wait()

    async def do() -> None:
        await connection.send(kit.daemon_name, [result(1)])
        async with kit.daemon() as daemon:
            await daemon.send(kit.runner_name, [command(1)])
            await anyio.to_thread.run_sync(told, kit, "rabbitmqctl", *raised)
            try:
                await until(full=True)
                assert (connection.problem, connection.quality) == (None, "degraded")
                with pytest.raises(LinkFull):
                    await connection.send(kit.daemon_name, [result(2)])
                received = await connection.receive()
                assert names(received) == ["a1"]
                await connection.ack(received)
            finally:
                await anyio.to_thread.run_sync(told, kit, "rabbitmqctl", *over)
            await until(full=False)
            await connection.send(kit.daemon_name, [result(2)])
            received = await take(daemon, 2)
            assert names(received) == ["a1", "a2"]
            await daemon.ack(received)
        assert [watched.lines(f"link_{what}") for what in ("up", "down", "full", "has_room")] == [1, 0, 1, 1]

    await watched.during(do)
    assert await kit.broker.held(kit.runner_name) == 0


def snippet(beginning: str) -> list[str]:
    """Gives the lines of the block in the docs whose first one begins so."""
    (found,) = [
        block
        for block in re.findall(r"^```\w*\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        if block.startswith(beginning)
    ]
    return found.splitlines()


@pytest.fixture(scope="module")
def users(brokers: Callable[[str], Broker]) -> dict[str, Any]:
    """Makes the virtual host and the users as the docs do, with one password; gives the fields of its ends."""
    kit = Kit("rabbitmq", brokers("rabbitmq"), "users")
    for line in snippet("rabbitmqctl add_vhost") + snippet("rabbitmqctl add_user gpu-1"):
        told(kit, *line.replace("'", "").split(), stdin=f"{SECRET}\n")
    return {"password": SECRET, "url": f"{kit.broker.url}/omnid"}


async def work(daemon: Link, runner: Link, kit: Kit) -> None:
    """Does all that is done over a link."""
    await daemon.send(kit.runner_name, [command(1), command(2)])
    await daemon.send(kit.runner_name, [command(3)])
    received = await take(runner, 3)
    await runner.ack(received[:2])
    await runner.refuse(received[2], "why")
    await runner.send(kit.daemon_name, [result(1)])
    await daemon.ack(await take(daemon, 1))
    for link in (daemon, runner):
        await link.ping()


async def test_the_rights_that_the_docs_give_to_its_user_are_enough(kit: Kit, users: dict[str, Any]) -> None:
    fields = {"user": "omnid", **users}
    async with kit.daemon(**fields) as daemon, kit.runner(**fields) as runner:
        await work(daemon, runner, kit)
        assert (await refused(kit.runner(**fields))).code == "name_taken"
    async with kit.runner(**fields) as runner:
        await runner.ping()


async def test_an_end_with_a_user_of_its_own_reads_its_own_and_nothing_else(kit: Kit, users: dict[str, Any]) -> None:
    kit.runner_name = "gpu-1"
    limited = {"user": "gpu-1", **users}
    async with kit.runner(**limited) as runner:
        # It may not make the queue of one that was never there.
        assert "ACCESS_REFUSED" in await unsent(runner, kit.daemon_name, [result(0)])
        async with kit.daemon(user="omnid", **users) as daemon:
            await work(daemon, runner, kit)
            assert (await refused(kit.runner(**limited))).code == "name_taken"
    error = await refused(kit.daemon(**limited))
    assert error.code == "link_refused"
    assert "ACCESS_REFUSED" in error.what


def announcing(data: bytes, version: str) -> bytes:
    """Has what a broker says when it is connected to announce another version, of the same length."""

    def other(found: re.Match[bytes]) -> bytes:
        length = len(found[3])
        return found[1] + found[2] + version.encode().ljust(length, b"0")[:length]

    return re.sub(rb"(versionS)(\0\0\0.)([0-9.]+)", other, data, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: announcing(data, "3.9.2"), "it is RabbitMQ 3.9.2"),
        (lambda data: announcing(data, "x.y.z"), "it is RabbitMQ x.y.z"),
        (lambda data: data.replace(b"\x07versionS", b"\x07versiomS"), "it is RabbitMQ of an unknown version"),
        (lambda data: announcing(data.replace(b"\x08RabbitMQ", b"\x08GrebbitM"), "2.1"), "it is GrebbitM 2.1"),
    ],
)
async def test_a_server_that_announces_another_version_is_refused(
    kit: Kit, change: Callable[[bytes], bytes], says: str
) -> None:
    async with proxied(kit.broker.port, change) as proxy:
        error = await refused(kit.daemon(url=url_of(proxy)))
    assert (type(error), error.code) == (Rejected, "link_refused")
    assert says in error.what
    assert "RabbitMQ 3.10 or later is needed" in error.what


def url_of(proxy: Proxy) -> str:
    return f"amqp://127.0.0.1:{proxy.port}"


Make = Callable[[Any, str], Awaitable[Any]]
QUORUM = {"x-queue-type": "quorum"}


def made(suffix: str, **fields: Any) -> Make:
    """Makes a queue of another program."""

    async def make(channel: Any, name: str) -> None:
        await channel.declare_queue(f"{queue_of(name)}{suffix}", durable=True, **fields)

    return make


FOREIGN = {
    "classic": made(""),
    "stream": made("", arguments={"x-queue-type": "stream"}),
    "without a dead-letter exchange": made("", arguments=QUORUM),
    "classic .dead": made(".dead"),
    ".dead without a limit": made(".dead", arguments=QUORUM),
    ".holder without a limit": made(".holder"),
    "durable .lock": made(".lock"),
}
ITS_OWN = {".holder without a limit", "durable .lock"}
"""Of concern to nobody who sends to that end."""


@pytest.mark.parametrize("what", FOREIGN)
async def test_a_queue_of_another_program_is_an_error_and_stays_as_it_was(kit: Kit, what: str) -> None:
    name = f"{kit.daemon_name}-{re.sub('[^a-z]+', '-', what)}"
    connection, channel = await kit.broker._channel()
    async with connection:
        await FOREIGN[what](channel, name)
        error = await refused(kit.end(name, {}))
        assert (type(error), error.code) == (Rejected, "link_refused")
        assert queue_of(name) in error.what
        async with kit.runner() as runner:
            if what not in ITS_OWN:
                assert queue_of(name) in await unsent(runner, name, [result(1)])
            await runner.ping()
        await FOREIGN[what](channel, name)  # It is the same as before, or this would be refused.


async def test_an_exchange_of_another_program_is_an_error_and_stays_as_it_was(kit: Kit, users: dict[str, Any]) -> None:
    import aio_pika

    fields = {"user": "omnid", **users}
    connection = await aio_pika.connect(port=kit.broker.port, login="omnid", password=SECRET, virtualhost="omnid")
    async with connection:
        channel = await connection.channel()
        await channel.exchange_delete(rabbitmq_queues.DEAD)
        try:
            await channel.declare_exchange(rabbitmq_queues.DEAD, "topic", durable=True)
            error = await refused(kit.daemon(**fields))
            assert (type(error), error.code) == (Rejected, "link_refused")
            assert f"'{rabbitmq_queues.DEAD}'" in error.what
            await channel.declare_exchange(rabbitmq_queues.DEAD, "topic", durable=True)
        finally:
            await (await connection.channel()).exchange_delete(rabbitmq_queues.DEAD)


async def test_of_what_is_set_aside_the_oldest_goes_beyond_the_limit(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    import aio_pika

    monkeypatch.setattr(rabbitmq_queues, "DEAD_MAX", 5)
    async with kit.runner():
        pass
    connection, channel = await kit.broker._channel()
    async with connection:
        exchange = await channel.get_exchange(rabbitmq_queues.DEAD)
        for number in range(8):
            await exchange.publish(aio_pika.Message(b"%d" % number), kit.runner_name)
    assert await kit.broker.dead(kit.runner_name) == [b"%d" % number for number in range(3, 8)]


class Configured(RabbitMQ):
    """A node with the config of the docs; of it only the port and the places of files are others."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = self.tls_port
        lines = "\n".join(snippet("listeners.tcp = none"))
        for place, file in (("ca", self.certificate), ("cert", self.certificate), ("key", self.key)):
            lines = lines.replace(f"/etc/rabbitmq/{place}.pem", str(file))
        (directory / "rabbitmq.conf").write_text(lines.replace("= 5671", f"= {self.port}") + "\n")


async def test_a_node_with_the_config_of_the_docs_carries_a_link(tmp_path: Path) -> None:
    node = Configured(tmp_path)
    try:
        await anyio.to_thread.run_sync(node.start)
        kit = Kit("rabbitmq", node, "configured")
        fields = {"url": node.tls_url, "ca": str(node.certificate)}
        async with kit.daemon(**fields) as daemon, kit.runner(**fields) as runner:
            await work(daemon, runner, kit)
        wanted = "[element(2, application:get_env(rabbit, Key)) || Key <- [consumer_timeout, tcp_listeners]]."
        assert (await evaluated(kit, wanted)).split() == ["[86400000,[]]"]
    finally:
        node.close()
