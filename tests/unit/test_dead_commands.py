"""A command that a runner has refused is among the dead, where people have its task tried again, or drop it."""

import pytest

from omnid.api.outbox_views import OutboxViews
from omnid.api.shapes_outbox import DeadList, DeadRef
from omnid.errors import Rejected
from omnid.model import Problem
from tests.fakes.world import PERSON, World
from tests.unit.test_lines import Bench, beat

pytestmark = pytest.mark.anyio

REFUSED = Problem.make("message_refused", link="cable", detail="this runner doesn't offer its executor command")


async def test_a_refused_command_is_retried_by_its_task_and_dropped(world: World) -> None:
    bench = Bench(world)
    bench.config("a")
    views = OutboxViews(bench.context)
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        for count in (1, 2):
            command = (await bench.sent(count))[-1]
            bench.cable.bring("a", command.ended("unstarted", REFUSED))
            await bench.cable.until(lambda command=command: command.attempt_id in bench.cable.acked)
            (dead,) = (await views.list(PERSON, DeadList())).deliveries
            assert (dead.destination, dead.kind, dead.subject) == ("runner/a", "command", task.id)
            assert dead.body["task"] == task.name
            assert dead.problem is not None
            assert "doesn't offer its executor command" in dead.problem.what
            assert (await views.show(PERSON, DeadRef(id=dead.id))) == dead
            assert (await bench.task(task)).state == "waiting"
            if count == 1:
                bench.cable.bring("a", beat())
                await views.retry(PERSON, DeadRef(id=dead.id))
                assert (await views.list(PERSON, DeadList())).deliveries == []
        await bench.world.control(task.name, "cancel")
        with pytest.raises(Rejected) as refused:
            await views.retry(PERSON, DeadRef(id="nothing"))
        assert refused.value.code == "unknown_delivery"
        await views.drop(PERSON, DeadRef(id=dead.id))
        assert (await views.list(PERSON, DeadList())).deliveries == []
