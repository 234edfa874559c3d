"""What `doctor` says of links and runners."""

from typing import Any, cast

import msgspec
import pytest

from omnid.api.link_views import LinkViews
from omnid.api.runner_views import RunnerViews
from omnid.model import Heartbeat, Problem
from omnid.settings_links import Link, Remote
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

DOWN = Problem("link_down", "The link cable is down: no.", "", "Look at the broker.")


class Connection:
    """As much of one as is looked at."""

    trouble: Problem | None = None


async def test_doctor_names_links_that_are_down_or_open_to_others_and_runners_that_are_lost(world: World) -> None:
    context, connection = world.context, Connection()
    links = (
        Link(name="cable", url="redis://127.0.0.1"),
        Link(name="far", url="rediss://192.0.2.1", key="env:K"),
        Link(name="open", url="rediss://192.0.2.1", unsigned=True),
    )
    remotes = tuple(Remote(name=name, link="cable", executors=("command",)) for name in ("gpu", "cpu"))
    context.config = msgspec.structs.replace(context.config, link=links, remote=remotes)
    fleet = context.fleet
    fleet.configure(remotes)
    fleet.connection = lambda name: cast("Any", connection) if name == "cable" else None
    fleet.link_up("cable")

    def found() -> dict[str, tuple[bool, str]]:
        findings = [*LinkViews(context, cast("Any", None)).findings(), *RunnerViews(context).findings()]
        assert all(one.ok or one.do for one in findings)
        return {one.name: (one.ok, one.detail) for one in findings}

    unused = (True, "no [[remote]] of the config uses it")
    signed = found()
    assert (signed["link cable"], signed["link far"]) == ((True, "it is up"), unused)
    assert signed["link open"][0] is False
    assert "nothing on it is signed" in signed["link open"][1]
    assert signed["runner gpu"] == (True, "it has not been heard yet")
    fleet.hear("gpu", Heartbeat("1", 1, 2, 0, 0.0, {"command": 2}))
    fleet.lose(fleet.peers["cpu"])
    assert found()["runner gpu"] == (True, "it is up")
    assert found()["runner cpu"] == (False, "nothing was heard of it for 60 s or longer; 0 attempts are on it")
    connection.trouble = DOWN
    fleet.link_down("cable")
    assert found()["link cable"] == (False, DOWN.what)
    assert not any(name.startswith("runner") for name in found())
