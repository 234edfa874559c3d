"""What the daemon tells of its router, and what a task keeps of its decision."""

from typing import Any

import msgspec
import pytest

from omnid.api.routing import Routing
from omnid.api.shapes_routing import RouteExplain
from omnid.api.views import Views
from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.model import Route
from omnid.settings import Rule
from tests.fakes.executor import InProcessExecutor
from tests.fakes.world import AGENT, PERSON, World, nothing

pytestmark = pytest.mark.anyio

RULE = Rule(name="work", executor=("absent", "mine"), labels=("x",))


@pytest.fixture
def ruled(world: World) -> World:
    world.context.config = msgspec.structs.replace(world.context.config, rule=(RULE,))
    world.context.take_executors({**world.context.executors, "mine": InProcessExecutor("mine", nothing)})
    return world


def explain(world: World, caller: Caller = PERSON, **fields: Any) -> Any:
    return Routing(world.context).explain(caller, RouteExplain(**fields))


async def test_the_rules_in_force_are_told_in_their_order(ruled: World) -> None:
    told = explain(ruled)
    assert (told.route, told.text, told.approval) == (None, "", False)
    first, *others = told.rules
    assert (first.name, first.built_in, first.executors, first.missing) == ("work", False, RULE.executor, ("absent",))
    assert all(rule.built_in for rule in others)


async def test_a_decision_is_told_and_nothing_is_written(ruled: World) -> None:
    told = explain(ruled, argv=("x",), labels=("x",))
    assert told.text == "It goes to mine by rule work; turned down: absent isn't in the config."
    assert (told.route.executor, told.approval) == ("mine", False)
    assert explain(ruled, argv=("x",)).text == "It goes to command: the default for a command (argv)."
    assert explain(ruled, argv=("x",), executor="safe").text == "It goes to safe: asked for by name."
    assert explain(ruled, AGENT, argv=("x",)).approval
    ruled.set("agents", allow=("command",))
    assert not explain(ruled, AGENT, argv=("x",)).approval
    assert await ruled.rows("SELECT count(*) FROM change WHERE collection = 'task'") == [(0,)]


async def test_what_a_submit_would_refuse_is_refused(ruled: World) -> None:
    for fields, code in (
        ({"argv": ("x",), "executor": "mien"}, "unknown_executor"),
        ({"argv": ("x",), "prompt": "y"}, "nothing_to_do"),
        ({"prompt": "y"}, "kind_missing"),
        ({"argv": ("",)}, "nothing_to_do"),
    ):
        with pytest.raises(Rejected) as caught:
            explain(ruled, **fields)
        assert caught.value.code == code


async def test_a_task_keeps_the_decision_and_why_tells_it(ruled: World) -> None:
    task = await ruled.add("x", labels=("x",))
    assert task.route is not None
    assert task.route.rule == "work"
    plain = await ruled.add("y")
    assert plain.route is None, "there was nothing to choose from"
    views = Views(ruled.context, ruled.gates)

    async def why(id: str) -> str:
        now = await ruled.task(id)
        return await ruled.store.read(lambda reader: views.sentence(reader, PERSON, now, None))

    assert (await why(task.id)).endswith("It goes to mine by rule work; turned down: absent isn't in the config.")
    assert "goes to" not in await why(plain.id)
    await ruled.claim()
    assert " It went to mine by rule work;" in await why(task.id)
    routes = [
        Route(**msgspec.json.decode(row[0])) for row in await ruled.rows("SELECT route FROM attempt ORDER BY ord")
    ]
    assert [(one.executor, one.rule, one.reason) for one in routes] == [
        ("mine", "work", "rule work"),
        ("command", None, "the default for a command (argv)"),
    ]
    await ruled.restart()
    assert (await ruled.task(task.id)).route == task.route


async def test_a_task_given_to_another_by_hand_says_so(ruled: World) -> None:
    await ruled.add("x", labels=("x",))
    await ruled.control("t1", "assign", executor="safe")
    await ruled.claim()
    ((route,),) = await ruled.rows("SELECT route FROM attempt")
    assert msgspec.json.decode(route) == {"executor": "safe", "reason": "given to it by hand"}
