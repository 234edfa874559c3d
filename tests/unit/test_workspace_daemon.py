"""Workspaces in a daemon: what its executors, its operations and its gates make of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.api import shapes
from omnid.api.methods import METHODS, Api
from omnid.daemon import Daemon
from omnid.errors import OmnidError, Rejected
from omnid.flow.caller import Caller
from omnid.flow.control import Cancelling
from omnid.flow.intake import permit_id
from omnid.model import Work
from tests.fakes.repository import Repository, write
from tests.fakes.signals import Fifo
from tests.unit.test_daemon_unit import Home, state, submit

pytestmark = pytest.mark.anyio

CONFIG = '[[executor]]\nname = "agent"\nkind = "command"\nargv = ["agent"]\nworkspace = "worktree"\n'
AGENT = """#!/bin/sh
case "$1" in
fail) exit 3 ;;
wait) cat "$2" > waited.txt ;;
nothing) ;;
*) echo "$1" > "$1.txt" ;;
esac
pwd
"""


class World:
    """A daemon with an agent, and a repository to work in."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path / "home")
        self.repository = Repository(path / "repo")
        write(path / "bin" / "agent", AGENT)
        (path / "bin" / "agent").chmod(0o755)
        self.home.environ["PATH"] += f":{path / 'bin'}"
        self.home.file.write_text(CONFIG)

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator["Running"]:
        async with self.home.daemon() as daemon:
            yield Running(daemon, self.repository)


class Running:
    def __init__(self, daemon: Daemon, repository: Repository) -> None:
        self.daemon = daemon
        self.repository = repository
        self.api = Api(daemon.context, daemon.gates, Cancelling(daemon.context), daemon, daemon.workspaces)

    async def submit(self, *argv: str, **fields: Any) -> str:
        fields = {"executor": "agent", "cwd": str(self.repository.path), **fields}
        return await submit(self.daemon, *argv, **fields)

    async def ended(self, id: str) -> str:
        return await state(self.daemon, id, lambda now: now in ("completed", "failed", "cancelled"))

    async def call(self, name: str, **params: Any) -> Any:
        return await self.api.call(Caller(), name, METHODS[name].params(**params))


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "home").mkdir()
    return World(tmp_path)


async def test_from_the_submit_to_the_merge(world: World) -> None:
    async with world.daemon() as running:
        id = await running.submit("new", cwd=f"{running.repository.path}/sub")
        assert await running.ended(id) == "completed"
        shown = await running.call("task.get", task="t1")
        place = shown.workspace
        assert shown.attempts[0].output.strip() == place["path"]
        assert place["path"].startswith(f"{running.daemon.workspaces.records.root}/t1-")
        assert place["path"].endswith("/sub")
        why = (await running.call("task.why", task="t1")).text
        assert f"on branch {place['branch']} (`omnictl diff t1`, `omnictl merge t1`)." in why
        assert "+new" in (await running.call("workspace.diff", task="t1")).text
        (listed,) = (await running.call("workspace.list")).workspaces
        assert (listed.task, listed.condition, listed.path) == ("t1", "kept", place["path"].removesuffix("/sub"))
        changes = (await running.call("task.receipt", task="t1")).changes
        assert changes.splitlines() == [" sub/new.txt | 1 +", " 1 file changed, 1 insertion(+)"]
        merged = await running.call("workspace.merge", task="t1")
        assert (merged.into, merged.files, merged.removed) == ("main", ["sub/new.txt"], True)
        assert (running.repository.path / "sub" / "new.txt").read_text() == "new\n"
        receipt = await running.call("task.receipt", task="t1")
        assert receipt.changes == " sub/new.txt | 1 +\n 1 file changed, 1 insertion(+)"
        assert (await running.call("task.get", task="t1")).workspace is None
        with pytest.raises(Rejected) as caught:
            await running.call("workspace.diff", task="t1")
        assert caught.value.code == "no_workspace"
        await running.ended(await running.submit("nothing"))
        assert (await running.call("workspace.list")).workspaces == []


async def test_what_was_changed_is_for_people(world: World) -> None:
    async with world.daemon() as running:
        id = await running.submit("new")
        assert await running.ended(id) == "completed"
        params = METHODS["task.receipt"].params(task=id)
        for role, told in (("person", True), ("agent", False)):
            receipt: Any = await running.api.call(Caller(role, "claude-code"), "task.receipt", params)
            assert (receipt.changes is not None) == told


async def test_a_full_house_closes_the_gate_until_there_is_room(world: World) -> None:
    world.home.file.write_text(f"{CONFIG}[workspace]\nkept_max = 1\n")
    async with world.daemon() as running:
        await running.ended(await running.submit("one"))
        waiting = await running.submit("two")
        gates = running.daemon.gates
        while gates.of("agent") is None:
            await running.daemon.context.watch.event(waiting).wait()
        gate = gates.of("agent")
        assert gate is not None
        assert gate.problem is not None
        assert gate.problem.code == "workspace_full"
        assert "t1" in gate.problem.do
        assert "no room for a workspace" in (await running.call("task.why", task="t2")).text
        with pytest.raises(OmnidError):
            await running.daemon.context.executors["agent"].probe()
        await running.daemon.context.executors["command"].probe()
        await running.call("workspace.remove", task="t1")
        assert gates.of("agent") is None
        assert await running.ended(waiting) == "completed"


async def test_a_plain_command_that_wants_one_waits_alone(world: World) -> None:
    world.home.file.write_text(f"{CONFIG}[workspace]\nkept_max = 1\n[retry]\nbackoff_base_s = 0.1\n")
    async with world.daemon() as running:
        await running.ended(await running.submit("one"))
        alone = await running.submit("touch", "x", executor="command", workspace="worktree")
        await state(running.daemon, alone, lambda now: now == "waiting")
        assert await running.ended(await running.submit("true", executor="command")) == "completed"
        assert running.daemon.gates.of("command") is None
        shown = await running.call("task.get", task="t2")
        assert (shown.task.reason, shown.task.problem.code) == ("backoff", "workspace_full")
        await running.call("workspace.merge", task="t1")
        assert await running.ended(alone) == "completed"


async def test_what_can_never_have_one_fails_with_its_reason(world: World, tmp_path: Path) -> None:
    empty = Repository(tmp_path / "empty", empty=True)
    async with world.daemon() as running:
        assert await running.ended(await running.submit("x", cwd=str(empty.path))) == "failed"
        shown = await running.call("task.get", task="t1")
        assert shown.task.problem.code == "workspace_impossible"
        assert shown.attempts_total == 1
        world.home.file.write_text(f'{CONFIG}[workspace]\nsetup = ["false"]\n[retry]\nattempts_max = 2\n')
        assert await running.daemon.reload() == []
        again = await running.submit("x", backoff_s=0.01)
        assert await running.ended(again) == "failed"
        shown = await running.call("task.get", task="t2")
        assert (shown.task.problem.code, shown.attempts_total) == ("setup_failed", 2)


async def test_an_attempt_that_outlives_its_daemon_is_settled_by_the_next(world: World, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    async with world.daemon() as running:
        id = await running.submit("wait", fifo.path)
        while not list(running.daemon.workspaces.records.root.glob("t1-*/waited.txt")):  # noqa: ASYNC110 - no signal.
            await anyio.sleep(0.01)
    async with world.daemon() as running:
        await anyio.Path(fifo.path).write_text("released\n")
        fifo.close()
        assert await running.ended(id) == "completed"
        record = running.daemon.workspaces.of(id)
        assert record is not None
        assert world.repository.git("show", f"{record.branch}:waited.txt") == "released"
        assert world.repository.git("status", "--porcelain", at=record.path) == ""


async def test_the_work_of_a_deleted_task_is_still_there_to_be_merged(world: World) -> None:
    async with world.daemon() as running:
        await running.ended(await running.submit("new"))
        await running.call("task.control", task="t1", action="delete")
        (listed,) = (await running.call("workspace.list")).workspaces
        assert listed.condition == "orphaned"
        await running.call("workspace.merge", task="t1")
        assert (running.repository.path / "new.txt").exists()
        with pytest.raises(Rejected) as caught:
            await running.call("workspace.merge", task="t1")
        assert caught.value.code == "unknown_task"


async def test_the_next_attempt_goes_on_where_the_last_one_ended(world: World) -> None:
    async with world.daemon() as running:
        id = await running.submit("fail", backoff_s=0.01, attempts_max=2)
        assert await running.ended(id) == "failed"
        shown = await running.call("task.get", task="t1")
        assert len(running.repository.worktrees()) == 1
        assert shown.workspace["path"] == running.repository.worktrees()[0]
        assert json.dumps(shown.workspace)


async def test_without_workspaces_the_operations_say_so(world: World) -> None:
    async with world.daemon() as running:
        api = Api(running.daemon.context, running.daemon.gates, Cancelling(running.daemon.context), running.daemon)
        with pytest.raises(Rejected) as caught:
            await api.call(Caller(), "workspace.list", shapes.Empty())
        assert caught.value.code == "no_workspace"


def test_a_permit_to_run_aside_is_none_to_run_in_place() -> None:
    ids = {permit_id("claude", "command", Work(argv=("x",), workspace=kind)) for kind in (None, "worktree", "none")}
    assert len(ids) == 3
