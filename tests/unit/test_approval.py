"""What a person approves is what runs: with what the executor's config adds, and not when that has changed."""

from typing import Any

import pytest
from msgspec import structs

from omnid.api.methods import Api
from omnid.api.shapes import Get
from omnid.config import CommandExecutor
from omnid.errors import Rejected, Retryable
from omnid.flow.caller import Caller
from omnid.flow.control import Cancelling
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.intake import needs_approval
from omnid.link.embedded import EmbeddedLink
from omnid.model import Submit, Work
from omnid.settings import Agents, Config
from tests.fakes.world import AGENT, World
from tests.unit.test_handler import Host

pytestmark = pytest.mark.anyio


@pytest.fixture
def api(world: World) -> Api:
    return Api(world.context, world.gates, Cancelling(world.context), Host())


def add_prefix(world: World, *prefix: str) -> None:
    """Has the executor `command` put words before each task's own, as its config could."""
    executor: Any = world.context.executors["command"]
    executor.exact = lambda work: structs.replace(work, argv=(*prefix, *(work.argv or ())), cwd=work.cwd or "/home")


async def waiting(world: World, *argv: str) -> str:
    task = await world.add(*argv, caller=AGENT)
    assert (task.state, task.reason) == ("waiting", "approval")
    return task.id


async def test_an_approved_task_runs_as_it_was_approved(world: World) -> None:
    add_prefix(world, "sudo")
    id = await waiting(world, "reboot")
    await world.control(id, "approve")
    (command,) = await world.claim()
    assert command.task_id == id


async def test_what_was_approved_does_not_run_as_something_else(world: World) -> None:
    add_prefix(world, "echo")
    id = await waiting(world, "reboot")
    await world.control(id, "approve")
    add_prefix(world, "sudo")
    assert await world.claim() == []
    task = await world.task(id)
    assert (task.state, task.reason, task.approval) == ("waiting", "approval", "needed")


async def test_a_task_that_is_turned_away_leaves_its_slot_to_the_next(world: World) -> None:
    world.set("daemon", slots_max=1)
    add_prefix(world, "echo")
    id = await waiting(world, "reboot")
    await world.control(id, "approve")
    later = await world.add("x")
    add_prefix(world, "sudo")
    dispatcher = Dispatcher(world.context, world.gates, EmbeddedLink())
    world.context.paused_starts = False
    assert await dispatcher.start_some(), "there may be more"
    await dispatcher.start_some()
    assert [(await world.task(one)).state for one in (id, later.id)] == ["waiting", "executing"]


async def test_always_holds_for_exactly_what_was_shown(world: World) -> None:
    add_prefix(world, "echo")
    await world.control(await waiting(world, "reboot"), "approve", always=True)
    again = await world.add("reboot", caller=AGENT)
    assert again.state == "idle"
    add_prefix(world, "sudo")
    assert (await world.add("reboot", caller=AGENT)).reason == "approval"
    assert len(await world.claim()) == 0
    assert (await world.task(again.id)).reason == "approval"


async def test_the_view_shows_what_would_run_and_where(world: World, api: Api) -> None:
    add_prefix(world, "sudo")
    id = await waiting(world, "reboot")
    view: Any = await api.call(AGENT, "task.get", Get(task=id))
    assert (view.work["argv"], view.work["cwd"], view.approval) == (("sudo", "reboot"), "/home", "needed")
    await world.control(id, "approve")
    view = await api.call(AGENT, "task.get", Get(task=id))
    assert view.approval == "granted"


CLAUDE = CommandExecutor(name="agent", profile="claude-code")


@pytest.mark.parametrize(
    ("section", "work", "asks"),
    [
        (CLAUDE, Work(prompt="--settings x"), False),
        (CLAUDE, Work(argv=("claude", "-p", "x")), False),
        (CLAUDE, Work(argv=("claude", "--print", "--output-format", "stream-json", "--", "-x")), False),
        (CLAUDE, Work(argv=("claude", "-p", "x", "--dangerously-skip-permissions")), True),
        (CLAUDE, Work(argv=("claude", "-p", "--settings", "{}", "x")), True),
        (CLAUDE, Work(argv=("claude", "-p", "--resume", "another", "x")), True),
        (CLAUDE, Work(argv=("claude", "mcp", "add", "x")), True),
        (CLAUDE, Work(argv=("/tmp/claude", "-p", "x")), True),
        (CLAUDE, Work(argv=("sh", "-p", "x")), True),
        (structs.replace(CLAUDE, argv=("claude", "-p")), Work(argv=("x",)), False),
        (structs.replace(CLAUDE, argv=("claude", "-p")), Work(argv=("--add-dir", "/", "x")), True),
        (CLAUDE, Work(prompt="x", workspace="none"), True),
        (CLAUDE, Work(prompt="x", workspace="copy"), False),
        (structs.replace(CLAUDE, workspace="none"), Work(prompt="x", workspace="none"), False),
        (
            CommandExecutor(name="agent", profile="openclaw"),
            Work(argv=("openclaw", "agent", "--json", "--message", "x")),
            False,
        ),
        (CommandExecutor(name="agent", profile="codex"), Work(argv=("codex", "exec", "--json", "x")), False),
        (CommandExecutor(name="agent", profile="codex"), Work(argv=("codex", "exec", "-c", "a=b", "x")), True),
        (CommandExecutor(name="agent", argv=("echo",)), Work(argv=("x",), workspace="none"), False),
    ],
)
def test_an_executor_that_is_open_to_agents_opens_no_words_of_their_own(
    section: CommandExecutor, work: Work, asks: bool
) -> None:
    wanted = Config(executor=(section,), agents=Agents(allow=("agent",)))
    assert needs_approval("agent", "agent", work, wanted) == asks
    assert not needs_approval("person", "agent", work, wanted)
    assert not needs_approval(
        "agent", "agent", work, structs.replace(wanted, agents=Agents(allow=("agent", "command")))
    )


@pytest.mark.parametrize("how", ["key", "session"])
async def test_what_was_acknowledged_is_acknowledged_again_though_it_could_not_be_taken_now(
    world: World, api: Api, how: str
) -> None:
    executor: Any = world.context.executors["command"]
    caller = Caller(session="s", request_id="1") if how == "session" else Caller()
    params = Submit(argv=("x",), key="k" if how == "key" else None)
    first: Any = await api.call(caller, "task.submit", params)

    def refuse(_work: Work) -> None:
        raise Rejected("bad_cwd", cwd="/x", why="It is not there.")

    executor.accepts = refuse
    again: Any = await api.call(caller, "task.submit", params)
    assert again.id == first.id
    with pytest.raises(Rejected, match="/x"):
        await api.call(Caller(), "task.submit", Submit(argv=("y",), key="other"))
    with pytest.raises(Rejected, match="/x"):
        await api.call(Caller(), "task.submit", Submit(argv=("y",)))


async def test_a_full_queue_still_answers_repeats(world: World) -> None:
    first = await world.add("x", key="k")
    limits = structs.replace(world.context.config.limits, waiting_tasks_max=1)
    world.context.config = structs.replace(world.context.config, limits=limits)
    (again,) = await world.submit(Submit(argv=("x",), key="k"))
    assert (again.id, again.created) == (first.id, False)
    with pytest.raises(Retryable) as caught:
        await world.submit(Submit(argv=("y",)))
    assert caught.value.code == "too_many_waiting"


@pytest.mark.parametrize(
    ("allow", "fields", "asks"),
    [
        (("safe",), {}, False),
        (("safe",), {"check": ("sh", "-c", "anything")}, True),
        (("safe", "command"), {"check": ("sh", "-c", "anything")}, False),
        (("safe",), {"env": ("AWS_SECRET_ACCESS_KEY",)}, True),
        (("safe", "command"), {"env": ("AWS_SECRET_ACCESS_KEY",)}, True),
        (("safe",), {"env": ("CI",)}, False),
        (("safe",), {"env": ("CI", "HOME_OF_SECRETS")}, True),
        ((), {"env": ("CI",)}, True),
    ],
)
async def test_an_executor_that_is_open_to_agents_opens_neither_checks_nor_the_environment(
    world: World, allow: tuple[str, ...], fields: dict[str, Any], asks: bool
) -> None:
    world.set("agents", allow=allow)
    safe = CommandExecutor(name="safe", argv=("echo",), env=("CI",))
    world.context.config = structs.replace(world.context.config, executor=(*world.context.config.executor, safe))
    task = await world.add("x", caller=AGENT, executor="safe", **fields)
    assert (task.reason == "approval") == asks
    assert (await world.add("x", executor="safe", **fields)).state == "idle", "people may"
    await world.control(task.id, "cancel")
    await world.control(task.id, "retry", caller=AGENT)
    assert ((await world.task(task.id)).reason == "approval") == asks
