"""What the config names is looked at before a task finds out, for nothing, and told until it is right."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from msgspec import structs

from omnid.channels import whole
from omnid.clock import SystemClock
from omnid.executor.direct import Direct
from omnid.executor.mcp import McpExecutor
from omnid.flow import checks as module
from omnid.flow.checks import Checks
from omnid.flow.mode import Shared
from omnid.log import Log
from omnid.secrets import Secrets
from omnid.settings import Channel, Models
from tests.contract.executors import LIMITS
from tests.contract.mcp_harness import argv, executors
from tests.fakes.cloud import Cloud, cloud
from tests.fakes.world import World

WAIT_S = 30
SECRET = "sk-planted-in-a-check"


class Place:
    """Checks of a world whose channels are a fake cloud's."""

    def __init__(self, world: World, fake: Cloud) -> None:
        self.world = world
        self.context = world.context
        self.cloud = fake
        direct = Direct(SystemClock(), Models())
        shared = Shared(cast(Any, None), direct, cast(Any, None))
        self.direct = direct
        self.checks = Checks(world.context, world.gates, lambda: shared, Secrets({"KEY": SECRET}))

    def channels(self, *modes: str, base_url: str = "", **fields: Any) -> None:
        made = tuple(
            whole(
                Channel(
                    name=f"p{number}",
                    profile="compatible",
                    base_url=base_url or self.cloud.base_url(mode),
                    models=("fake-1",),
                    key="env:KEY",
                    **fields,
                )
            )
            for number, mode in enumerate(modes, 1)
        )
        self.context.config = structs.replace(self.context.config, channel=made)

    def wrong(self) -> list[str]:
        return [problem.what for problem in self.context.channel_problems]

    async def until(self, count: int) -> None:
        with anyio.fail_after(WAIT_S):
            while len(self.context.channel_problems) != count:  # noqa: ASYNC110 - they have no signal.
                await anyio.sleep(0.01)


@pytest.fixture
async def place(world: World) -> AsyncGenerator[Place]:
    async with cloud() as fake:
        made = Place(world, fake)
        yield made
        await made.direct.aclose()
        assert fake.seen == [], "nothing was spent"
        assert SECRET not in world.logged.getvalue()


async def test_what_is_wrong_with_a_channel_is_a_problem_and_says_what_to_do(place: Place) -> None:
    place.channels("ok", "key_refused", "credit", "sign_in")
    found = await place.checks.channels()
    assert [one.kind for one in found] == [None, "key", "credit", None]
    assert "its list of models can't be read" in found[3].detail
    assert [what.partition(":")[0] for what in place.wrong()] == [
        f"The channel {name} can't be used with the key env" for name in ("p2", "p3")
    ]
    assert "account of p2" in place.context.channel_problems[0].do
    assert place.world.logged.getvalue().count('"channel_unwell"') == 2
    await place.checks.channels()
    assert place.world.logged.getvalue().count('"channel_unwell"') == 2, "logged once"


async def test_a_key_that_is_found_good_is_taken_again(place: Place) -> None:
    trusted: list[Any] = []
    place.context.modes.trust_keys = trusted.append
    place.channels("ok", "key_refused")
    await place.checks.channels()
    assert trusted == [[("p1", "env:KEY")]]


async def test_a_key_that_can_not_be_had_and_a_model_that_is_not_there_are_problems(place: Place) -> None:
    place.channels("ok", backup_keys=("env:NO_SUCH_KEY",))
    place.cloud.listing = {"data": [{"id": "fake-2"}]}
    assert [one.kind for one in await place.checks.channels()] == ["absent", "secret"]
    assert "it has no model fake-1" in place.wrong()[0]
    assert "did you mean fake-2?" in place.context.channel_problems[0].do
    assert "Provide env:NO_SUCH_KEY" in place.context.channel_problems[1].do


@pytest.mark.parametrize(
    ("answers", "local", "count"), [(True, False, 1), (False, False, 0), (False, True, 1)], ids=str
)
async def test_without_any_way_to_the_cloud_no_single_channel_is_at_fault(
    place: Place, answers: bool, local: bool, count: int
) -> None:
    place.channels("ok", base_url="http://127.0.0.1:9/v1", local=local)
    away = place.context.config.channel
    place.channels("ok", "ok")
    here = place.context.config.channel[1:] if answers else ()
    place.context.config = structs.replace(place.context.config, channel=(*away, *here))
    assert [one.kind for one in await place.checks.channels()] == ["cloud", None][: 1 + answers]
    assert len(place.wrong()) == count


async def test_it_is_looked_at_again_until_it_is_right_and_when_the_config_changes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN", module.Backoff(0.01, 0.02))
    place.cloud.modes["one"] = "key_refused"
    place.channels("one")
    async with anyio.create_task_group() as group:
        group.start_soon(place.checks.run)
        await place.until(1)
        place.cloud.modes["one"] = "ok"
        await place.until(0)
        assert '"channel_changed"' in place.world.logged.getvalue()
        await anyio.wait_all_tasks_blocked()
        place.channels("credit")
        place.checks.look()
        await place.until(1)
        group.cancel_scope.cancel()


@asynccontextmanager
async def server(place: Place, tmp_path: Path, **options: Any) -> AsyncGenerator[McpExecutor]:
    """Gives an executor whose MCP server is there to be checked."""
    log = Log(SystemClock(), str, stream=place.world.logged)
    async with executors(tmp_path, LIMITS, log, argv=argv(**options)) as made:
        place.context.executors = {**place.context.executors, made.name: made}
        yield made


def starts(place: Place) -> int:
    return place.world.logged.getvalue().count('"mcp_started"')


async def test_a_server_is_greeted_once_and_let_go(place: Place, tmp_path: Path) -> None:
    async with server(place, tmp_path) as made:
        with anyio.fail_after(WAIT_S):
            await place.checks.executors((made.name, "of_no_such_name"))
            while made.awake:  # noqa: ASYNC110 - its end has no signal.
                await anyio.sleep(0.01)
    assert starts(place) == 1
    assert "nobody needs it now" in place.world.logged.getvalue()
    assert place.world.gates.all() == []


async def test_a_server_that_somebody_uses_is_not_let_go(place: Place, tmp_path: Path) -> None:
    async with server(place, tmp_path, start_s=0.3) as made, anyio.create_task_group() as group:
        group.start_soon(place.checks.executors, (made.name,))
        while not made.awake:  # noqa: ASYNC110 - its start has no signal.
            await anyio.sleep(0.01)
        # It waits for the start that the check has begun, and uses it no sooner than the check is done with it.
        with anyio.fail_after(WAIT_S):
            answer = await made.call_tool("slow", {"s": 0.2}, "one")
            assert answer.kind == "done", answer
            assert made.awake
            await made.probe()
            await place.checks.executors((made.name,))
            assert made.awake, "it was there before the check"
    assert starts(place) == 1


async def test_what_is_wrong_with_a_server_closes_its_gate_and_says_so(place: Place, tmp_path: Path) -> None:
    async with server(place, tmp_path, exit=3) as made:
        await place.checks.executors((made.name,))
        (gate,) = place.world.gates.all()
        assert (gate.subject, gate.cause) == (made.name, "executor")
        assert gate.problem is not None
        assert "exit code 3" in gate.problem.what


async def test_an_executor_that_the_config_no_longer_has_gets_no_gate(place: Place, tmp_path: Path) -> None:
    async with server(place, tmp_path, start_s=0.3) as made, anyio.create_task_group() as group:
        group.start_soon(place.checks.executors, (made.name,))
        while not made.awake:  # noqa: ASYNC110 - its start has no signal.
            await anyio.sleep(0.01)
        place.context.executors = {name: one for name, one in place.context.executors.items() if name != made.name}
        await made.aclose()
    assert place.world.gates.all() == []
