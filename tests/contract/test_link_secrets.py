"""What crosses a link is in no error and no log, whatever the broker or its library quotes of it."""

import traceback
from collections.abc import Callable, Sequence

import anyio.to_thread
import pytest

from omnid.errors import Retryable
from omnid.link.interface import Link, LinkFull, Message
from omnid.link.message import Codec
from omnid.model import Cancel
from tests.contract.links import KINDS, Kit, command, kit_of, occupy, sifted, take, until_ping
from tests.fakes.brokers import Broker

pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]

SECRET = "s3cret"
BATCHES: tuple[Sequence[Message], ...] = (
    [command(1, argv=(SECRET,))],
    [command(number, stdin=SECRET) for number in range(3)],
    [Cancel(SECRET)],
)


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    return kit_of(request, brokers)


async def test_what_is_sent_is_in_no_error_and_no_log(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    # redis-py quotes the first bytes of a command, and nobody promises how many.
    monkeypatch.setattr("redis.asyncio.client.truncate_text", lambda text: text)
    said: list[str] = []
    async with kit.daemon(timeout_s=3.0) as daemon, kit.runner() as runner:
        wrong = Codec("cable", "near", {}).encode(kit.runner_name, BATCHES[0])[0].replace(b'"name"', b'"nam"')
        await kit.broker.put(kit.runner_name, wrong)
        await daemon.send(kit.runner_name, [command(9)])
        await runner.ack(await sifted(runner, await take(runner, 2)))
        await anyio.to_thread.run_sync(kit.broker.fill)
        try:
            await until_ping(daemon, LinkFull)
            said += [await told(daemon, kit.runner_name, batch) for batch in BATCHES]
        finally:
            await anyio.to_thread.run_sync(kit.broker.clear)
        await until_ping(daemon, None)
    other = f"{kit.runner_name}-2"
    await occupy(kit, other)
    async with kit.daemon() as daemon:
        said += [await told(daemon, other, batch) for batch in BATCHES]
    assert len(await kit.broker.dead(kit.runner_name)) == 1
    assert "message_set_aside" in kit.logged.getvalue()
    assert SECRET not in "".join((*said, kit.logged.getvalue()))


async def told(link: Link, to: str, batch: Sequence[Message]) -> str:
    """Gives all that there is to be logged of a send that fails."""
    with pytest.raises(Retryable) as caught:
        await link.send(to, batch)
    return "".join(traceback.format_exception(caught.value)) + str(caught.value.as_dict())
