"""Resources and prompts, as raw messages in both eras."""

import json
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from omnid.api.mcp_follow import Follow
from omnid.api.mcp_resources import PROMPTS
from omnid.executor.spool import Spool
from tests.fakes.home import Home
from tests.fakes.mcp_talk import Talk, Work, talk

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("modern", [True, False])]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def text(client: Talk, uri: str) -> str:
    (content,) = (await client.ask("resources/read", uri=uri))["contents"]
    assert content["uri"] == uri
    return content["text"]


async def test_resources_show_what_the_tools_do(home: Home, *, modern: bool) -> None:
    work = Work(home)
    work.go.set()
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as one:
        listed = await one.ask("resources/list")
        assert [resource["uri"] for resource in listed["resources"]] == ["omnid://status", "omnid://inbox"]
        if modern:
            assert (listed["ttlMs"], listed["cacheScope"]) == (300_000, "public")
        templates = (await one.ask("resources/templates/list"))["resourceTemplates"]
        assert [template["uriTemplate"] for template in templates] == ["omnid://task/{id}", "omnid://task/{id}/log"]
        made = (await one.submit())["structuredContent"]
        await one.ask("tools/call", name="task_get", arguments={"task": "t1", "wait_s": 10})
        for ref in ("t1", made["id"]):
            assert json.loads(await text(one, f"omnid://task/{ref}"))["task"]["state"] == "completed"
        assert json.loads(await text(one, "omnid://status"))["tasks"] == {"completed": 1}
        assert [task["name"] for task in json.loads(await text(one, "omnid://inbox"))["tasks"]] == ["me/t1"]
        assert await text(one, "omnid://task/t1/log") == "done"
        for uri in ("omnid://task/t9", "omnid://task/", "omnid://task/t1/x", "omnid://x", "file:///etc/passwd"):
            refused = await one.ask("resources/read", uri=uri)
            assert refused["code"] == (-32602 if modern else -32002)
            assert refused["data"]["uri"] == uri


async def test_prompts_say_which_tools_answer(home: Home, *, modern: bool) -> None:
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as one:
        listed = {prompt["name"]: prompt for prompt in (await one.ask("prompts/list"))["prompts"]}
        assert listed.keys() == PROMPTS.keys()
        for name, prompt in listed.items():
            given = {argument["name"]: "{task} {plan} x" for argument in prompt.get("arguments", ())}
            (message,) = (await one.ask("prompts/get", name=name, arguments=given))["messages"]
            assert message["role"] == "user"
            assert ("{task} {plan} x" in message["content"]["text"]) is bool(given)
        assert (await one.ask("prompts/get", name="why_waiting"))["code"] == -32602
        assert (await one.ask("prompts/get", name="nothing"))["code"] == -32602


async def follow(client: Talk, *uris: str) -> list[str]:
    """Subscribes to resources; gives those that are."""
    if client.modern:
        await client.send("subscriptions/listen", notifications={"resourceSubscriptions": uris})
        said = await client.read()
        assert said["method"] == "notifications/subscriptions/acknowledged"
        return said["params"]["notifications"].get("resourceSubscriptions", [])
    taken: list[str] = []
    for uri in uris:
        answer = await client.ask("resources/subscribe", uri=uri)
        assert answer == {} or (answer["code"], answer["data"]["uri"]) == (-32002, uri)
        taken += [] if answer else [uri]
    return taken


async def updates(client: Talk, *uris: str) -> None:
    """Reads until each of the resources was said to have changed, and no other."""
    left = set(uris)
    while left:
        said = await client.read()
        assert said["method"] == "notifications/resources/updated"
        assert said["params"]["uri"] in uris
        assert ("_meta" in said["params"]) is client.modern
        left.discard(said["params"]["uri"])


async def test_each_resource_is_subscribed_to(home: Home, monkeypatch: pytest.MonkeyPatch, *, modern: bool) -> None:
    monkeypatch.setattr("omnid.api.mcp_follow.LOOK_S", 0.02)
    work = Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as one:
        task = f"omnid://task/{(await one.submit())['structuredContent']['id']}"
        with anyio.fail_after(10):
            while not daemon.context.running:
                await anyio.lowlevel.checkpoint()
        assert await follow(one, "omnid://status", "omnid://inbox") == ["omnid://status", "omnid://inbox"]
        async with talk(daemon, modern=modern, declared=False) as two:
            assert await follow(two, f"{task}/log", f"{task}/log/x") == [f"{task}/log"]
            (attempt,) = daemon.context.running
            spool = cast("Spool", daemon.context.spool)
            for _ in range(2):
                await spool.append_log(attempt, "more\n")
                await updates(two, f"{task}/log")
            work.go.set()
            await updates(two, f"{task}/log")
            assert await text(two, f"{task}/log") == "more\nmore\n"
        await updates(one, "omnid://status", "omnid://inbox")


async def test_what_others_have_is_not_told(home: Home, monkeypatch: pytest.MonkeyPatch, *, modern: bool) -> None:
    monkeypatch.setattr("omnid.api.mcp_follow.LOOK_S", 0.02)
    work, look, looked = Work(home), Follow.look, 0
    work.go.set()

    async def counted(self: Follow, context: Any, uri: str, *args: Any, **how: Any) -> Any:
        nonlocal looked
        found = await look(self, context, uri, *args, **how)
        looked += 1
        return found

    monkeypatch.setattr(Follow, "look", counted)
    home.file.write_text(f'{home.file.read_text()}[[origin]]\nname = "me"\nlabels = []\n')
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as one:
        async with talk(daemon, modern=modern, declared=False, name="other") as other:
            theirs = f"omnid://task/{(await other.submit())['structuredContent']['id']}"
            refused = [theirs, f"{theirs}/log", "omnid://task/t1", theirs[:-1], "omnid://x", "file:///etc/passwd"]
            assert await follow(one, *refused, "omnid://inbox", "omnid://status") == ["omnid://inbox", "omnid://status"]
            await other.submit()
            await other.ask("tools/call", name="task_get", arguments={"task": "t2", "wait_s": 10})
            looked = 0
            with anyio.fail_after(10):
                while looked < 4:
                    await anyio.lowlevel.checkpoint()
            assert (await one.ask("resources/list"))["resources"]
            assert one.heard == [], "what is another's"
        await one.submit()
        await updates(one, "omnid://inbox", "omnid://status")


async def test_ids_are_completed(home: Home, *, modern: bool) -> None:
    work = Work(home)
    async with home.daemon() as daemon:
        async with talk(daemon, modern=modern, declared=False, name="other") as other:
            await other.submit()
        async with talk(daemon, modern=modern, declared=False) as one:
            ids = [(await one.submit())["structuredContent"]["id"] for _ in range(11)]

            async def complete(kind: str, ref: str, name: str, typed: str) -> Any:
                given = {"type": f"ref/{kind}", "uri" if kind == "resource" else "name": ref}
                answer = await one.ask("completion/complete", ref=given, argument={"name": name, "value": typed})
                return answer.get("completion", {}).get("values", answer.get("code"))

            for template in ("omnid://task/{id}", "omnid://task/{id}/log"):
                assert await complete("resource", template, "id", "t1") == ["t11", "t10", "t1"]
                assert await complete("resource", template, "id", ids[3][:-1].upper()) == [ids[3]]
                assert len(await complete("resource", template, "id", "")) == 11
                assert await complete("resource", template, "other", "t") == []
            assert len(await complete("prompt", "why_waiting", "task", "t")) == 11
            work.go.set()
            for id in ids:
                await one.ask("tools/call", name="task_get", arguments={"task": id, "wait_s": 10})
            assert await complete("prompt", "why_waiting", "task", "t") == [], "all have ended"
            assert await complete("prompt", "queue_plan", "plan", "t") == []
            assert await complete("prompt", "nothing", "task", "t") == -32602
            assert await complete("resource", "omnid://status", "id", "t") == -32602


async def test_the_old_subscriptions(home: Home, *, modern: bool) -> None:
    work = Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as one:
        uri = f"omnid://task/{(await one.submit())['structuredContent']['id']}"
        if modern:
            assert (await one.ask("resources/subscribe", uri=uri))["code"] == -32601
            return
        other = f"omnid://task/{(await one.submit())['structuredContent']['id']}"
        for _ in range(2):
            assert await one.ask("resources/subscribe", uri=uri) == {}
            assert await one.ask("resources/subscribe", uri=other) == {}
        assert await one.ask("resources/unsubscribe", uri=other) == {}
        assert await one.ask("resources/unsubscribe", uri="omnid://task/never") == {}
        work.go.set()
        state = ""
        while state != "completed":
            said = await one.read()
            assert (said["method"], said["params"]) == ("notifications/resources/updated", {"uri": uri})
            state = json.loads(await text(one, uri))["task"]["state"]


async def test_subscriptions_are_bounded_and_end_with_their_connection(
    home: Home, monkeypatch: pytest.MonkeyPatch, *, modern: bool
) -> None:
    if modern:
        return
    monkeypatch.setattr("omnid.api.mcp_subscriptions.SUBSCRIBED_MAX", 1)
    work = Work(home)
    async with home.daemon() as daemon:
        async with talk(daemon, modern=False) as one:
            uris = [f"omnid://task/{(await one.submit())['structuredContent']['id']}" for _ in range(2)]
            assert await one.ask("resources/subscribe", uri=uris[0]) == {}
            assert (await one.ask("resources/subscribe", uri=uris[1]))["code"] == -32602
            await one.ask("resources/unsubscribe", uri=uris[0])
            assert await one.ask("resources/subscribe", uri=uris[1]) == {}
        with anyio.fail_after(10):
            while daemon.context.watch._events:
                await anyio.lowlevel.checkpoint()
        work.go.set()
