"""An answer arrives where the question was asked: the asker is gone, the daemon is killed, and it comes once."""

import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import Implementation

from omnid.errors import OmnidError
from tests.e2e.harness import FAKES, WAIT_S, Home, assert_says, until
from tests.fakes.hook import Hook

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


CONFIG = """
[agents]
allow = ["tests"]
[notify]
to = []
[outbox]
retry_base_s = 0.05
retry_max_s = 0.1
[[executor]]
name = "tests"
kind = "command"
[[destination]]
name = "home-chat"
kind = "openclaw"
argv = ["{openclaw}"]
channel = "telegram"
target = "@me"
[[executor]]
name = "claw"
kind = "mcp"
argv = ['{python}', '{server}', '{{"ledger": "{ledger}"}}']
[[destination]]
name = "over-mcp"
kind = "openclaw"
executor = "claw"
[[destination]]
name = "hook"
kind = "webhook"
url = "{url}"
secret = "env:HOOK_SECRET"
[[destination]]
name = "gone"
kind = "command"
argv = ["/no/such/program"]
"""


class Chat:
    """A home with a stand-in for `openclaw`, and what it was given."""

    def __init__(self, home: Home, hook: Hook) -> None:
        self.home = home
        self.place = home.root / "openclaw"
        self.place.mkdir()
        program = self.place / "openclaw"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKES / "receiver.py"}" "{self.place}" "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        home.environ["HOOK_SECRET"] = "whsec_aGVsbG8="
        self.ledger = self.place / "ledger"
        self.config = CONFIG.format(
            openclaw=program,
            url=hook.url,
            python=sys.executable,
            server=FAKES / "mcp_server.py",
            ledger=self.ledger,
        )
        home.configure(self.config)

    def behave(self, mode: str) -> None:
        (self.place / "mode").write_text(mode)

    def calls(self) -> list[list[str]]:
        path = self.place / "got"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["argv"] for line in lines]

    def end_slow(self) -> None:
        """Ends the stand-ins that hang, and their children."""
        for line in (self.place / "got").read_text().splitlines():
            for pid in json.loads(line).get("pids", ()):
                os.kill(pid, signal.SIGKILL)

    def messages(self) -> list[str]:
        return [argv[-1].removeprefix("--message=") for argv in self.calls()]

    def waits(self, queue: str) -> int:
        return sum(one["waiting"] for one in self.home.client.status()["outbox"] if one["destination"] == queue)

    def settled(self) -> None:
        """Waits until nothing waits to be delivered."""
        until(lambda: not any(one["waiting"] for one in self.home.client.status()["outbox"]), "an empty outbox")


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def chat(home: Home, hook: Hook) -> Chat:
    return Chat(home, hook)


def openclaw(home: Home) -> Client:
    """A client as OpenClaw's: 2025-11-25 over stdio, without tasks."""
    relay = StdioServerParameters(command=sys.executable, args=["-m", "omnid", "mcp"], env=home.environ)
    info = Implementation(name="openclaw", version="1")
    return Client(relay, mode="legacy", client_info=info, read_timeout_seconds=WAIT_S)


async def submitted(home: Home, script: str, **fields: Any) -> str:
    """Submits as that client, which then leaves."""
    fields.setdefault("reply_to", {"channel": "home-chat", "target": "@me", "session": "main"})
    async with openclaw(home) as agent:
        arguments = {"argv": ["/bin/sh", "-c", script], "cwd": str(home.work), **fields}
        answer = await agent.call_tool("task_submit", arguments)
        assert not answer.is_error, answer
        return str(answer.structured_content["name"])


async def test_the_answer_comes_once_though_the_client_left_and_the_daemon_was_killed(chat: Chat, home: Home) -> None:
    home.start()
    with home.gate() as gate:
        name = await submitted(home, "read x < go; echo the answer is 42", executor="tests")
        home.wait(name, "executing")
        home.kill()
        gate.let()
    home.start()
    home.wait(name)
    chat.settled()
    home.kill()  # What was confirmed must not come again.
    home.start()
    chat.settled()
    (argv,) = chat.calls()
    assert argv[:5] == ["message", "send", "--channel", "telegram", "--target=@me"]
    assert argv[5] == (f"--message={name} is done: /bin/sh -c read x < go; echo the answer is 42\nthe answer is 42")
    home.stop()
    home.assert_nothing_left()


async def test_an_answer_waits_for_a_chat_that_is_down_and_survives_a_kill_while_it_is_sent(
    chat: Chat, home: Home
) -> None:
    chat.behave("slow")
    home.start()
    name = await submitted(home, "echo hello", executor="tests")
    until(chat.calls, "the first try")
    home.kill()
    chat.end_slow()  # A program outlives a killed daemon until it ends by itself.
    chat.behave("down")
    home.start()
    until(lambda: len(chat.calls()) >= 3, "more tries")
    (queue,) = home.client.status()["outbox"]
    assert (queue["destination"], queue["waiting"], queue["problem"]["code"]) == ("home-chat", 1, "delivery_failed")
    assert "home-chat: 1 wait" in home.ctl("status").out
    chat.behave("ok")
    chat.settled()
    count = len(chat.calls())
    assert chat.messages()[-1].startswith(f"{name} is done")
    home.stop()
    assert len(chat.calls()) == count
    home.assert_nothing_left()


async def test_a_person_approves_through_the_chat_and_the_agent_alone_can_not(chat: Chat, home: Home) -> None:
    home.start()
    name = await submitted(home, "echo deployed", executor="command")
    until(chat.calls, "the question")
    (question,) = chat.messages()
    assert "1 approve, 3 drop" in question
    code = question.partition("with the code ")[2].split()[0]
    async with openclaw(home) as agent:
        for text in ("1", "1 aaaaaaaaaa", "approve"):
            answer = await agent.call_tool("task_control", {"task": name, "action": "reply", "text": text})
            assert answer.is_error
            assert_says("bad_code", str(answer.content[0].text))
        done = await agent.call_tool("task_control", {"task": name, "action": "reply", "text": f"1 {code}"})
        assert not done.is_error, done
    assert home.wait(name)["task"]["state"] == "completed"
    until(lambda: len(chat.calls()) == 2, "the answer")
    assert chat.messages()[1].splitlines()[1:] == ["deployed"]
    home.stop()


async def test_a_webhook_that_hangs_when_the_daemon_is_killed_gets_the_same_id_again(
    chat: Chat, home: Home, hook: Hook
) -> None:
    hook.held = held = threading.Event()
    home.start()
    name = await submitted(home, "echo hello", executor="tests", reply_to={"channel": "hook"})
    assert await anyio.to_thread.run_sync(hook.came.wait, WAIT_S)
    home.kill()
    hook.held = None
    held.set()
    home.start()
    chat.settled()
    home.stop()
    first, second = hook.got
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert second.json()["data"]["task"] == name
    assert second.headers["webhook-signature"].startswith("v1,")


def test_an_answer_goes_over_mcp(chat: Chat, home: Home) -> None:
    home.start()
    for session in ("main", "unknown"):
        home.wait(home.sh("echo hello", reply_to={"channel": "over-mcp", "session": session}))
    (dead,) = until(lambda: home.ctl("dead", "--json").json()["deliveries"], "the dead delivery")
    assert (dead["problem"]["code"], dead["body"]["session"]) == ("delivery_refused", "unknown")
    home.wait(home.sh("echo hello", reply_to={"channel": "over-mcp", "session": "down"}))
    until(lambda: any(one["tries"] > 1 for one in home.client.status()["outbox"]), "a second try")
    home.stop()
    calls = [json.loads(line) for line in chat.ledger.read_text().splitlines()]
    sent = [call["arguments"] for call in calls if call.get("called") == "messages_send"]
    assert [given["session_key"] for given in sent][:3] == ["main", "unknown", "down"]
    assert sent[0]["text"] == "t1 is done: /bin/sh -c echo hello\nhello"
    home.assert_nothing_left()


def test_what_can_not_be_delivered_is_seen_retried_and_dropped(chat: Chat, home: Home, hook: Hook) -> None:
    home.start()
    hook.status = 410
    for number in range(2):
        home.wait(home.sh(f"echo {number}", reply_to={"channel": "hook"}))
    until(lambda: sum(one["dead"] for one in home.client.status()["outbox"]) == 2, "two dead deliveries")
    assert "2 given up (omnictl dead)" in home.ctl("status").out
    first, second = (one["id"] for one in home.ctl("dead", "--json").json()["deliveries"])
    shown = home.ctl("dead", "show", first, environ={"COLUMNS": "1000"}).out
    assert_says("delivery_refused", shown)
    hook.status = 200
    assert home.ctl("dead", "retry", first).code == 0
    chat.settled()
    assert [post.headers["webhook-id"] for post in hook.got].count(first) == 2
    assert home.ctl("dead", "drop", second).code == 0
    said = home.ctl("dead", "drop", second, environ={"COLUMNS": "1000"})
    assert_says("unknown_delivery", said.err)
    assert home.ctl("dead").err == "Nothing was given up.\n"
    assert home.ctl("doctor").code == 0
    home.stop()


def test_a_channel_that_is_not_there_or_has_left_is_explained(chat: Chat, home: Home) -> None:
    home.start()
    for reply_to, code in (({"channel": "home-chta"}, "unknown_channel"), ({"channel": "over-mcp"}, "no_target")):
        with pytest.raises(OmnidError) as caught:
            home.sh("true", reply_to=reply_to)
        assert caught.value.code == code
        assert_says(code, str(caught.value))
    with home.gate() as gate:
        name = home.sh("read x < go", reply_to={"channel": "gone"})
        home.configure(chat.config.replace('name = "gone"', 'name = "other"'))
        assert home.ctl("config", "reload").code == 0
        gate.let()
        home.wait(name)
    (dead,) = until(lambda: home.ctl("dead", "--json").json()["deliveries"], "a dead delivery")
    assert dead["problem"]["code"] == "destination_gone"
    home.configure(chat.config)
    assert home.ctl("config", "reload").code == 0
    assert home.ctl("dead", "retry", "all").code == 0
    until(lambda: chat.waits("gone"), "another try")
    home.stop()


def test_the_daemon_of_a_server_without_a_desktop_keeps_no_notices(home: Home) -> None:
    home.configure("[notify]\ngroup_s = 0")
    home.environ["PATH"] = str(Path(home.root, "nothing"))
    home.start()
    home.problem(home.submit(["/bin/false"], attempts_max=1))
    until(lambda: not any(one["waiting"] for one in home.client.status()["outbox"]), "an empty outbox")
    home.stop()
    assert "notice_without_desktop" in (home.state / "omnid.log").read_text()
