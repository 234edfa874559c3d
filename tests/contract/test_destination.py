"""One suite for all destinations: success, down, slow, refused, twice."""

import json
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from omnid.clock import SystemClock
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.link.apprise import AppriseDestination
from omnid.link.command import CommandDestination
from omnid.link.desktop import Desktop, DesktopDestination
from omnid.link.destination import Destination
from omnid.link.openclaw import TOOL, OpenClawDestination
from omnid.link.webhook import WebhookDestination
from omnid.log import Log
from omnid.model import Delivery
from omnid.secrets import Secrets
from omnid.settings import Destination as Section
from tests.fakes.hook import Hook
from tests.fakes.signals import Fifo, gone

pytestmark = pytest.mark.anyio

RECEIVER = Path(__file__).parents[1] / "fakes" / "receiver.py"
TEXT = "t7 is done: make\nß <b>✓</b> $(id) `id`"
FAKE_APPRISE = """
import json, os, subprocess, sys
class Apprise:
    def add(self, url):
        self.url = url
        return url.startswith("fake://")
    def notify(self, body, title):
        sys.argv = ["receiver.py", os.environ["HOME"], self.url, body]
        done = subprocess.run([sys.executable, {receiver!r}, os.environ["HOME"], self.url, body], input="", text=True)
        return done.returncode == 0
"""


def delivery(id: str = "1f-ab", text: str = TEXT, **body: Any) -> Delivery:
    body = {"event": "completed", "task": "t7", "target": "@me", "session": "s-1", **body, "text": text}
    return Delivery(1, id, "place", "answer", "t", body, 1_800_000_000_000)


class Kit:
    """One kind of destination and the other side of it."""

    refuses = True
    """Whether the other side can say that it will never take something."""
    knows_ids = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.signal = Fifo(path / "signal")
        self.destination = self.make()

    def make(self) -> Destination:
        raise NotImplementedError

    def behave(self, mode: str) -> None:
        (self.path / "mode").write_text(mode)

    @property
    def calls(self) -> list[dict[str, Any]]:
        path = self.path / "got"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def got(self) -> list[tuple[str, str]]:
        """What has arrived: (id, text)."""
        return [(call["env"]["OMNID_DELIVERY"], call["stdin"]) for call in self.calls]

    def program(self) -> str:
        path = self.path / "program"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{RECEIVER}" "{self.path}" "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    async def begun(self) -> None:
        await self.signal.line()

    async def assert_nothing_left(self) -> None:
        for pid in self.calls[-1]["pids"]:
            await gone(pid)

    def close(self) -> None:
        self.signal.close()


class CommandKit(Kit):
    def make(self) -> Destination:
        section = Section(name="place", kind="command", argv=(self.program(), "--flag"))
        return CommandDestination(section, {"PATH": "/usr/bin:/bin"})


class OpenClawKit(Kit):
    refuses = False
    knows_ids = False

    def make(self) -> Destination:
        section = Section(name="place", kind="openclaw", argv=(self.program(),))
        return OpenClawDestination(section, {"PATH": "/usr/bin:/bin"}, no_call)

    def got(self) -> list[tuple[str, str]]:
        return [("", call["argv"][-1].removeprefix("--message=")) for call in self.calls]


class DesktopKit(Kit):
    refuses = False
    knows_ids = False

    def make(self) -> Destination:
        log = Log(SystemClock(), lambda text: text).logger()
        return DesktopDestination(Desktop(self.program(), False), {"PATH": "/usr/bin:/bin"}, log)

    def got(self) -> list[tuple[str, str]]:
        import html

        return [("", html.unescape(call["argv"][-1])) for call in self.calls]


class AppriseKit(Kit):
    knows_ids = False

    def make(self) -> Destination:
        (self.path / "apprise.py").write_text(FAKE_APPRISE.format(receiver=str(RECEIVER)))
        self.secrets = {"URL": "fake://key"}
        section = Section(name="place", kind="apprise", url="env:URL")
        environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.path), "HOME": str(self.path)}
        return AppriseDestination(section, Secrets(self.secrets), environ)

    def behave(self, mode: str) -> None:
        super().behave("ok" if mode == "reject" else mode)
        self.secrets["URL"] = "unknown://" if mode == "reject" else "fake://key"

    def got(self) -> list[tuple[str, str]]:
        return [("", call["argv"][1]) for call in self.calls]


class WebhookKit(Kit):
    def make(self) -> Destination:
        self.hook = Hook()
        section = Section(name="place", kind="webhook", url=self.hook.url)
        return WebhookDestination(section, Secrets({}), SystemClock())

    def behave(self, mode: str) -> None:
        self.hook.status = {"down": 503, "reject": 410}.get(mode, 204)
        self.hook.held = threading.Event() if mode == "slow" else None

    def got(self) -> list[tuple[str, str]]:
        return [(post.headers["webhook-id"], post.json()["data"]["text"]) for post in self.hook.got]

    async def begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.hook.came.wait, 10)

    async def assert_nothing_left(self) -> None:
        pass

    def close(self) -> None:
        super().close()
        self.hook.close()


class McpKit(Kit):
    def make(self) -> Destination:
        self.mode = "ok"
        self.mcp: list[tuple[str, str]] = []
        self.started = anyio.Event()
        section = Section(name="place", kind="openclaw", executor="openclaw")
        return OpenClawDestination(section, {}, self._call)

    async def _call(self, executor: str, tool: str, arguments: dict[str, Any], id: str) -> None:
        assert (executor, tool, arguments["session_key"]) == ("openclaw", TOOL, "s-1")
        self.started.set()
        if self.mode == "down":
            raise Retryable("delivery_failed", destination="place", detail="it says so")
        if self.mode == "reject":
            raise Rejected("delivery_refused", destination="place", detail="bad arguments")
        if self.mode == "slow":
            await anyio.sleep_forever()
        self.mcp.append((id, arguments["text"]))

    def behave(self, mode: str) -> None:
        self.mode = mode

    def got(self) -> list[tuple[str, str]]:
        return self.mcp

    async def begun(self) -> None:
        await self.started.wait()

    async def assert_nothing_left(self) -> None:
        pass


async def no_call(executor: str, tool: str, arguments: dict[str, Any], id: str) -> None:
    raise AssertionError("nobody asked for MCP")


KITS = {kit.__name__: kit for kit in (CommandKit, OpenClawKit, McpKit, DesktopKit, AppriseKit, WebhookKit)}


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    made = KITS[request.param](tmp_path)
    yield made
    made.close()


async def fails(kit: Kit) -> OmnidError:
    with pytest.raises(OmnidError) as caught:
        await kit.destination.send([delivery()])
    return caught.value


async def test_a_text_arrives_as_it_is(kit: Kit) -> None:
    assert kit.destination.due_ms([delivery()], 5) <= 5
    await kit.destination.send([delivery()])
    assert kit.got() == [("1f-ab" if kit.knows_ids else "", TEXT)]


async def test_one_that_is_down_may_be_tried_again_later(kit: Kit) -> None:
    kit.behave("down")
    error = await fails(kit)
    assert isinstance(error, Retryable)
    assert error.code == "delivery_failed"
    kit.behave("ok")
    await kit.destination.send([delivery()])
    assert kit.got()[-1][1] == TEXT


async def test_a_slow_one_is_left_at_once_and_leaves_nothing_behind(kit: Kit) -> None:
    kit.behave("slow")
    async with anyio.create_task_group() as group:
        group.start_soon(kit.destination.send, [delivery()])
        await kit.begun()
        group.cancel_scope.cancel()
    await kit.assert_nothing_left()


async def test_what_is_refused_is_refused_for_good(kit: Kit) -> None:
    kit.behave("reject")
    if kit.refuses:
        assert isinstance(await fails(kit), Rejected)
    else:
        # Its program has no way to say so: whatever it fails with is tried again, until it is given up.
        assert isinstance(await fails(kit), Retryable)


async def test_a_second_one_is_known_by_its_id(kit: Kit) -> None:
    for _ in range(2):
        await kit.destination.send([delivery()])
    await kit.destination.send([delivery(id="2f-ab")])
    ids = [id for id, _ in kit.got()]
    assert ids == (["1f-ab", "1f-ab", "2f-ab"] if kit.knows_ids else ["", "", ""])


@pytest.mark.parametrize("kind", [CommandKit, OpenClawKit, DesktopKit])
async def test_a_program_that_is_not_there_is_down(tmp_path: Path, kind: type[Kit]) -> None:
    kit = kind(tmp_path)
    (tmp_path / "program").unlink()
    error = await fails(kit)
    kit.close()
    assert isinstance(error, Retryable)
    assert "can't be started" in error.what


async def test_what_no_program_can_be_given_is_refused(tmp_path: Path) -> None:
    kit = OpenClawKit(tmp_path)
    with pytest.raises(Rejected):
        await kit.destination.send([delivery(target="a\0b")])
    kit.close()


async def test_a_program_that_reads_nothing_is_none_the_worse_for_it(tmp_path: Path) -> None:
    kit = CommandKit(tmp_path)
    kit.behave("deaf")
    await kit.destination.send([delivery(text="x" * 1_000_000)])
    kit.close()
