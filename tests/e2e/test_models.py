"""Prompts through a real daemon, the real LiteLLM and a cloud that fails as it is told to."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from omnid.errors import OmnidError
from tests.e2e.harness import FAKES, TOLD, Home, until
from tests.fakes.cloud import COST_USD, TEXT, Cloud, cloud

KEYS = {"P1_KEY": "sk-planted-primary-1", "P1_BACKUP": "sk-planted-backup-1", "P2_KEY": "sk-planted-primary-2"}
CALL_S = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake() -> Iterator[Cloud]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(cloud()) as made:
        yield made


@pytest.fixture
def sky() -> Iterator[Callable[[int], Any]]:
    """Gives clouds that can be taken away: each is served at a port (0: a free one) inside a `with`."""
    with start_blocking_portal() as portal:
        yield lambda port: portal.wrap_async_context_manager(cloud(port))


@pytest.fixture
def planted(home: Home) -> Iterator[Home]:
    """A home whose daemons have the keys in their environment; none of them may come out anywhere."""
    home.environ |= KEYS
    yield home
    home.stop()
    for key in KEYS.values():
        for path in home.root.rglob("*"):
            if path.is_file():
                assert key.encode() not in path.read_bytes(), path


def channel(name: str, base_url: str, key: str, more: str = "") -> str:
    head = f'[[channel]]\nname = "{name}"\nprofile = "openrouter"\nbase_url = "{base_url}"\nkey = "env:{key}"\n'
    return f'{head}models = [{{ name = "fake-1", input_usd = 1, output_usd = 2 }}]\n{more}\n'


def prompt(home: Home, text: str, **more: Any) -> str:
    return str(home.client.call("omnid/task.submit", {"prompt": text, **more})["id"])


def shown(home: Home, id: str) -> dict[str, Any]:
    got = home.client.get(id, output=True)
    return {**got, **got["task"]}


def calls_of(home: Home, id: str) -> list[tuple[str, int | None, str | None]]:
    """Gives the channel, the cost and the outcome of each call."""
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as database:
        query = "SELECT channel, spent_microusd, outcome FROM call WHERE task_id = ? ORDER BY ord"
        return database.execute(query, (id,)).fetchall()


def problem_code(home: Home, id: str) -> str | None:
    """Gives what the last attempt said, once it has ended."""
    attempts = shown(home, id)["attempts"]
    return attempts[-1]["problem"]["code"] if attempts and attempts[-1]["problem"] else None


def finished(home: Home, id: str, state: str = "completed") -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        got = shown(home, id)
        if got["state"] == "failed" and state != "failed":
            raise AssertionError(got["why"])
        return got if got["state"] == state else None

    until(look, lambda: f"{state}: {shown(home, id)['why']}", CALL_S)
    return shown(home, id)


def test_a_prompt_takes_the_first_channel_and_its_cost_is_known(planted: Home, fake: Cloud) -> None:
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY"))
    planted.start()
    got = finished(planted, prompt(planted, "say hello"))
    assert got["attempts"][0]["output"] == TEXT
    assert got["executor"] == "model"
    assert "The call went to p1 (fake-1) through the gateway: the first in order" in got["why"]
    assert got["money"]["amounts"]["spent_usd"] == pytest.approx(COST_USD)
    assert calls_of(planted, got["id"]) == [("p1", round(COST_USD * 1e6), "success")]


def test_p1_limited_goes_on_with_the_next_key_and_then_with_p2(planted: Home, fake: Cloud) -> None:
    fake.modes["one"] = "limit_seconds"
    more = 'backup_keys = ["env:P1_BACKUP"]'
    one, two = (fake.base_url("one"), fake.base_url("ok"))
    planted.configure(channel("p1", one, "P1_KEY", more) + channel("p2", two, "P2_KEY"))
    planted.start()
    got = finished(planted, prompt(planted, "say hello"))
    assert "Call 3 went to p2" in got["why"]
    assert "HTTP 429: the fake says rate_limit_error; turned down: p1 (its key is limited)" in got["why"]
    assert [seen.headers["authorization"].removeprefix("Bearer ") for seen in fake.seen] == list(KEYS.values())
    again = finished(planted, prompt(planted, "say it again"))
    assert "The call went to p2" in again["why"]
    assert len(fake.seen) == 4


def test_a_hard_prompt_takes_p2_as_the_config_has_it_and_people_are_told(planted: Home, fake: Cloud) -> None:
    fake.modes["one"] = "ok"
    free = channel("p1", fake.base_url("one"), "P1_KEY", "free = true").replace(", input_usd = 1, output_usd = 2", "")
    both = free + channel("p2", fake.base_url("ok"), "P2_KEY")
    planted.configure(both)
    planted.start()
    assert "The call went to p1" in finished(planted, prompt(planted, "say hello"))["why"]
    why = finished(planted, prompt(planted, "say more", labels=["hard"]))["why"]
    assert "The call went to p2" in why
    assert "the prompt is hard (label hard)" in why
    planted.configure(both + '[models]\nhard_labels = ["tricky"]\n')
    planted.client.call("omnid/config.reload", {})
    assert "The call went to p1" in finished(planted, prompt(planted, "say most", labels=["hard"]))["why"]
    fake.modes["one"] = "limit_seconds"
    finished(planted, prompt(planted, "say it all"))
    said = " ".join(planted.ctl("mode").out.split())
    assert "env:P1_KEY is limited until" in said
    assert said.startswith("normal for ")


def test_where_all_are_limited_the_task_parks_with_the_time(planted: Home, fake: Cloud) -> None:
    planted.configure(channel("p1", fake.base_url("limit_seconds"), "P1_KEY"))
    planted.start()
    id = prompt(planted, "say hello")
    why = until(lambda: "No channel can take" in (text := shown(planted, id)["why"]) and text, "the reason")
    assert "its key is limited until" in str(why)
    assert shown(planted, id)["reason"] == "rate_limit"
    assert problem_code(planted, id) == "no_channel"
    planted.configure(channel("p2", fake.base_url("ok"), "P2_KEY"))
    planted.client.call("omnid/config.reload", {})
    planted.client.call("omnid/gate.resume", {"executor": "model"})
    finished(planted, id)


def outages(home: Home) -> list[tuple[Any, ...]]:
    """Gives cause, subject, how many were parked and gone on, and whether it is over."""
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as database:
        query = "SELECT cause, subject, parked, resumed, ended_at_ms IS NOT NULL FROM outage ORDER BY ord"
        return database.execute(query).fetchall()


def test_a_gateway_killed_in_flight_goes_on_directly_and_comes_back_once(planted: Home, fake: Cloud) -> None:
    fake.modes["one"] = "hang_before"
    place = channel("p1", fake.base_url("one"), "P1_KEY", 'backup_keys = ["env:P1_BACKUP"]')
    planted.configure(place + "[mode]\ngateway_probe_every_s = 0.2\n")
    planted.start()
    id, other = prompt(planted, "say hello"), prompt(planted, "say more")
    until(lambda: len(fake.seen) == 2, "the calls through the gateway", CALL_S)
    fake.modes["one"] = "ok"
    os.kill(gateway_of(planted), signal.SIGKILL)
    got = finished(planted, id)
    assert "directly: direct, with a backup key" in got["why"]
    assert "before it, p1: the gateway broke off" in got["why"]
    assert got["attempts"][0]["number"] == 1
    assert [(cost is None, outcome) for _, cost, outcome in calls_of(planted, id)] == [
        (True, "gateway"),
        (False, "success"),
    ]
    assert fake.seen[2].headers["authorization"] == f"Bearer {KEYS['P1_BACKUP']}"
    finished(planted, other)
    until(lambda: outages(planted) == [("gateway", "litellm", None, None, 1)], lambda: str(outages(planted)), CALL_S)
    assert planted.client.status()["mode"] == "normal"
    assert "through the gateway" in finished(planted, prompt(planted, "say it again"))["why"]


def test_a_frozen_gateway_is_gone_past_restarted_and_comes_back_once(planted: Home, fake: Cloud) -> None:
    fake.modes |= {"one": "late"}
    backed = channel("p1", fake.base_url("one"), "P1_KEY", 'backup_keys = ["env:P1_BACKUP"]')
    planted.configure(backed + TOLD.format(told=planted.root / "told") + "[mode]\ngateway_probe_every_s = 0.2\n")
    planted.start()
    texts = ["say hello", "say more"]
    ids = [prompt(planted, text) for text in texts]
    until(lambda: len(fake.seen) == 2, "the calls through the gateway", CALL_S)
    frozen = gateway_of(planted)
    os.kill(frozen, signal.SIGSTOP)
    until(lambda: len(fake.answered) == 2, "answers that nobody reads", CALL_S)
    fake.modes["one"] = "ok"
    until(lambda: planted.client.status()["mode"] == "degraded", "the mode", CALL_S)
    texts.append("say it past the gateway")
    ids.append(prompt(planted, texts[-1]))
    whys = [finished(planted, id)["why"] for id in ids]
    assert all("directly: direct, with a backup key" in why for why in whys), whys
    assert all("before it, p1: the gateway broke off" in why for why in whys[:2]), whys
    assert gateway_of(planted) == frozen, "no call waits for the end of a process that doesn't heed SIGTERM"
    until(lambda: planted.client.status()["mode"] == "normal", "the mode", CALL_S)
    texts.append("say it through the gateway")
    ids.append(prompt(planted, texts[-1]))
    assert "through the gateway" in finished(planted, ids[-1])["why"]
    assert gateway_of(planted) != frozen
    assert outages(planted) == [("gateway", "litellm", None, None, 1)]
    told = str(until(lambda: "is back" in (text := (planted.root / "told").read_text()) and text, "the notice"))
    assert (told.count("The gateway is down"), told.count("The gateway is back")) == (1, 1), told
    cut, well = [("p1", None, "gateway")], [("p1", round(COST_USD * 1e6), "success")]
    assert [calls_of(planted, id) for id in ids] == [cut + well, cut + well, well, well], "no call after an answer"
    # What was answered into the frozen process was asked again: it is counted beside, as nobody knows what it cost.
    asked, answered = (Counter(one.body["messages"][-1]["content"] for one in of) for of in (fake.seen, fake.answered))
    assert asked == answered == dict(zip(texts, (2, 2, 1, 1), strict=True))
    amounts = planted.client.status()["today"]["amounts"]
    assert amounts["spent_usd"] == pytest.approx(4 * COST_USD)
    assert amounts["unknown_usd"] > 2 * COST_USD


def gateway_of(home: Home) -> int:
    """Gives the pid of the gateway's process; its supervisor's is the lower one."""
    return max(pid for pid, line in home.processes().items() if "worker/gateway.py" in line)


def test_the_cloud_goes_and_comes_back(planted: Home, sky: Callable[[int], Any]) -> None:
    rest = "[mode]\ncloud_probe_every_s = 0.3\n"
    with sky(0) as fake:
        port = fake.port
        planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY") + rest)
        planted.start()
        finished(planted, prompt(planted, "say hello"))
    ids = [prompt(planted, f"say {number}") for number in range(3)]
    until(lambda: planted.client.status()["mode"] == "brainstem", "the mode", CALL_S)
    ids.append(prompt(planted, "say more"))
    until(lambda: {shown(planted, id)["reason"] for id in ids} == {"cloud"}, "the gate", CALL_S)
    assert "waits for the cloud" in shown(planted, ids[0])["why"]
    assert [gate["cause"] for gate in planted.client.status()["gates"]] == ["cloud"]
    planted.kill()
    planted.start()
    with sky(port):
        for id in ids:
            finished(planted, id)
        assert planted.client.status()["mode"] == "normal"
    (outage,) = [one for one in outages(planted) if one[0] == "cloud"]
    assert outage[4] == 1


def test_each_outage_leaves_a_snapshot_to_go_back_to(planted: Home, fake: Cloud) -> None:
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY") + "[mode]\ncloud_probe_every_s = 0.3\n")
    planted.start()
    before = prompt(planted, "say hello")
    finished(planted, before)
    planted.client.call("omnid/mode.hold", {"hold": "brainstem"})
    mode = until(lambda: (found := planted.client.call("omnid/mode.show", {}))["snapshots"] and found, "the snapshot")
    (snapshot,) = mode["snapshots"]
    assert mode["no_snapshot"] is None
    path = Path(snapshot["path"])
    assert (path.parent, path.stat().st_mode & 0o777) == (planted.state / "snapshots", 0o600)
    assert path.stat().st_size == snapshot["size_bytes"]
    assert str(path) in "".join(planted.ctl("mode").out.split())
    (outage,) = planted.ctl("outages", "--json").json()["outages"]
    assert outage["snapshot"] == str(path)
    assert f"snapshot {path.name}" in planted.ctl("outages", environ={"COLUMNS": "200"}).out
    prompt(planted, "say more")
    planted.stop()
    back = planted.root / "back"
    back.mkdir(mode=0o700)
    path.rename(back / "journal.db")
    planted.client.close()
    planted.use(back)
    planted.start()
    findings = planted.client.call("omnid/doctor", {})["findings"]
    assert {one["name"]: one["ok"] for one in findings if one["name"] in ("database", "log")} == {
        "database": True,
        "log": True,
    }
    assert [task["id"] for task in planted.client.call("omnid/task.list", {})["tasks"]] == [before]
    until(lambda: planted.client.status()["mode"] == "normal", "the end of the outage that it was made in")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_local_model_is_woken_answers_who_asked_for_it_and_is_killed(
    planted: Home, sky: Callable[[int], Any]
) -> None:
    port, away = free_port(), free_port()
    argv = ["/usr/bin/env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.fakes.cloud", str(port)]
    brainstem = f'[brainstem]\nargv = {json.dumps(argv)}\nbase_url = "http://127.0.0.1:{port}/ok/v1"\n'
    place = channel("p1", f"http://127.0.0.1:{away}/ok/v1", "P1_KEY")
    planted.configure(place + brainstem + "[mode]\ncloud_probe_every_s = 0.3\n")
    planted.start()
    parked = prompt(planted, "say hello")
    until(lambda: planted.client.status()["mode"] == "brainstem", "the mode", CALL_S)
    got = finished(planted, prompt(planted, "say hello", offline="local"))
    assert got["executor"] == "model-offline"
    assert "The call went to brainstem (default_model) directly" in got["why"]
    assert got["money"]["amounts"]["spent_usd"] == 0
    # Its first try may still be backing off when the mode turns; it waits for the cloud at the next one.
    until(lambda: shown(planted, parked)["reason"] == "cloud", "the task waits for the cloud", CALL_S)
    refused = finished(planted, prompt(planted, "say hello", offline="fail"), "failed")
    assert "offline = fail" in refused["why"]

    def servers() -> list[str]:
        return [line for line in planted.processes().values() if "tests.fakes.cloud" in line and "env " not in line]

    assert servers()
    with sky(away):
        finished(planted, parked)
    until(lambda: not servers(), "the end of the local model")


def test_offline_fail_fails_where_nothing_can_be_reached(planted: Home) -> None:
    planted.configure(channel("p1", "http://127.0.0.1:9/v1", "P1_KEY"))
    planted.start()
    got = finished(planted, prompt(planted, "say hello", offline="fail"), "failed")
    assert "No channel can be reached" in got["why"]
    assert got["problem"]["code"] == "cloud_gone"


def test_a_call_cut_with_the_daemon_stays_unknown_and_the_prompt_runs_again(planted: Home, fake: Cloud) -> None:
    fake.modes["one"] = "hang_before"
    planted.configure(channel("p1", fake.base_url("one"), "P1_KEY") + "[retry]\nbackoff_base_s = 0.1\n")
    planted.start()
    id = prompt(planted, "say hello")
    until(lambda: len(fake.seen) == 1, "the call", CALL_S)
    planted.kill()
    fake.modes["one"] = "ok"
    planted.start()
    got = finished(planted, id)
    assert sorted(attempt["outcome"] for attempt in got["attempts"]) == ["lost", "success"]
    assert [cost is None for _, cost, _ in calls_of(planted, id)] == [True, False]


def test_a_lid_holds_back_what_it_has_no_room_for(planted: Home, fake: Cloud) -> None:
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY") + "[budget]\nday_usd = 0.000001\n")
    planted.start()
    id = prompt(planted, "say hello")
    until(lambda: "waits for money" in shown(planted, id)["why"], lambda: str(shown(planted, id)), CALL_S)
    assert not fake.seen
    assert problem_code(planted, id) == "no_money"
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY") + "[budget]\nday_usd = 1.0\n")
    planted.client.call("omnid/config.reload", {})
    finished(planted, id)


def test_an_unknown_model_is_refused_with_the_nearest(planted: Home, fake: Cloud) -> None:
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY"))
    planted.start()
    with pytest.raises(OmnidError, match=r"No channel has a model fake-2.*did you mean fake-1") as caught:
        prompt(planted, "say hello", model="fake-2")
    assert caught.value.code == "unknown_model"
    assert shown(planted, prompt(planted, "fix the bug", model="strong"))["executor"] == "model"


@pytest.mark.parametrize(
    ("mode", "code", "reason"),
    [
        ("key_refused", "no_channel_key", "login"),
        ("fault", "model_failed", None),
        ("bad_request", "call_refused", None),
    ],
)
def test_what_a_provider_says_becomes_a_reason(
    planted: Home, fake: Cloud, mode: str, code: str, reason: str | None
) -> None:
    planted.configure(channel("p1", fake.base_url(mode), "P1_KEY"))
    planted.start()
    id = prompt(planted, "say hello", attempts_max=1)
    found = until(lambda: problem_code(planted, id), lambda: str(shown(planted, id)), CALL_S)
    assert (found, shown(planted, id)["reason"]) == (code, reason)


def test_a_prompt_that_no_channel_can_ever_take_fails_at_once(planted: Home, fake: Cloud) -> None:
    small = channel("p1", fake.base_url("ok"), "P1_KEY").replace(
        'name = "fake-1"', 'name = "fake-1", context_tokens = 2000'
    )
    planted.configure(small)
    planted.start()
    got = finished(planted, prompt(planted, "word " * 9_000), "failed")
    assert got["problem"]["code"] == "no_channel_ever"
    assert not fake.seen


def test_the_config_may_hold_executors_of_kind_model(planted: Home, fake: Cloud) -> None:
    more = '[[executor]]\nname = "terse"\nkind = "model"\nsystem = "Be short."\nmodel = "cheap"\n'
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY") + more)
    planted.start()
    finished(planted, prompt(planted, "say hello", executor="terse"))
    assert [message["role"] for message in fake.seen[0].body["messages"]] == ["system", "user"]


def test_a_live_check_names_the_models_that_a_channel_does_not_have(planted: Home, fake: Cloud) -> None:
    unlisted = channel("p2", fake.base_url("sign_in"), "P2_KEY")
    planted.configure(channel("p1", fake.base_url("ok"), "P1_KEY").replace("fake-1", "fake-2") + unlisted)
    planted.start()
    checks = planted.client.call("omnid/channel.check", {})["checks"]
    assert [(one["name"], one["ok"]) for one in checks] == [("p1", False), ("p2", True)]
    assert checks[0]["detail"] == "it has no model fake-2"
    assert checks[0]["do"] == "Correct channel.p1.models in the config (did you mean fake-1?)."
    assert "its list of models can't be read" in checks[1]["detail"]
    checked = planted.ctl("config", "check", "--live")
    assert (checked.code, "no model fake-2" in checked.out, "can't be read" in checked.out) == (1, True, True)
    assert fake.looked
    assert not fake.seen


def test_a_start_says_what_is_wrong_with_channels_until_it_is_right(planted: Home, fake: Cloud) -> None:
    good = channel("p1", fake.base_url("ok"), "P1_KEY")
    planted.configure(good + channel("p2", fake.base_url("key_refused"), "P2_KEY"))
    planted.start()
    until(lambda: planted.client.status()["problems"], "the problem")
    (problem,) = planted.client.status()["problems"]
    assert (problem["code"], "env:P2_KEY" in problem["what"]) == ("channel_unwell", True)
    assert problem["do"] == "Look at the account of p2, and at the key that env:P2_KEY names."
    assert problem["do"] in " ".join(planted.ctl("status").out.split())
    assert "channel_unwell" in (planted.state / "omnid.log").read_text()
    with contextlib.closing(planted.agent("agent")) as agent:
        assert agent.call("omnid/status", {})["problems"] == [], "an agent isn't told where keys lie"
    planted.configure(good)
    planted.client.call("omnid/config.reload", {})
    until(lambda: not planted.client.status()["problems"], "that it is right")
    assert fake.looked
    assert not fake.seen
    assert not [line for line in planted.processes().values() if "worker/gateway.py" in line], (
        "no child is started for it"
    )


def test_a_start_greets_the_servers_and_waits_for_none(planted: Home, fake: Cloud) -> None:
    config = channel("p1", fake.base_url("ok"), "P1_KEY")
    for name, options in {"good": {}, "mute": {"mute": True}, "broken": {"exit": 3}}.items():
        argv = [sys.executable, "-I", "-S", str(FAKES / "mcp_server.py"), json.dumps(options)]
        config += f'[[executor]]\nname = "{name}"\nkind = "mcp"\nargv = {json.dumps(argv)}\n'
        config += "start_timeout_s = 3\n" if name == "mute" else ""
    planted.configure(config)
    planted.start()
    finished(planted, prompt(planted, "say hello"))
    until(lambda: len(planted.client.status()["gates"]) == 2, "the gates", CALL_S)
    events = [json.loads(line)["event"] for line in (planted.state / "omnid.log").read_text().splitlines()]
    assert events.index("started") < events.index("executor_down")
    said = " ".join(planted.ctl("status").out.split())
    assert "Executor mute can't be used: it didn't answer within 3 s of its start." in said
    assert "Executor broken can't be used: it ended with exit code 3" in said
    until(lambda: events_of(planted, "mcp_ended") == {"good", "mute", "broken"}, "the end of all of them")
    assert events_of(planted, "mcp_started") == {"good"}
    checked = planted.ctl("config", "check", "--live")
    assert (checked.code, checked.out.count("Mend it; its gate opens by itself")) == (1, 2), checked
    assert len(fake.seen) == 1, "nothing was spent but for the prompt"


def events_of(home: Home, event: str) -> set[str]:
    """Gives the MCP servers of which the log tells that."""
    lines = map(json.loads, (home.state / "omnid.log").read_text().splitlines())
    return {line["server"] for line in lines if line["event"] == event}


def test_people_see_the_mode_the_channels_and_the_outages(planted: Home, fake: Cloud) -> None:
    good = channel("p1", fake.base_url("ok"), "P1_KEY") + channel("p2", fake.base_url("key_refused"), "P2_KEY")
    planted.configure(good + channel("p3", "http://127.0.0.1:9/v1", "NO_KEY"))
    planted.start()
    shown_mode = planted.ctl("mode")
    assert (shown_mode.code, "normal" in shown_mode.out, "p3" in shown_mode.out) == (0, True, True)
    checks = planted.client.call("omnid/channel.check", {})["checks"]
    assert [(one["name"], one["ok"]) for one in checks] == [("p1", True), ("p2", False), ("p3", False)]
    assert checks[1]["do"] == "Look at the account of p2, and at the key that env:P2_KEY names."
    assert "NO_KEY" in checks[2]["detail"]
    assert planted.ctl("config", "check", "--live").code == 1
    findings = planted.client.call("omnid/doctor", {})["findings"]
    assert [(one["name"], one["ok"]) for one in findings if "channel" in one["name"]] == [
        ("channel p1", True),
        ("channel p2", False),
        ("channel p3", False),
    ]
    assert planted.ctl("mode", "hold", "brainstem").code == 0
    id = prompt(planted, "say hello")
    until(lambda: shown(planted, id)["reason"] == "cloud", "the gate")
    assert "held at brainstem" in planted.ctl("mode").out
    titles, row = planted.ctl("outages").out.splitlines()
    assert titles.split() == ["FROM", "FOR", "CAUSE", "OF", "PARKED", "RESUMED", "WHY"]
    assert row.split()[1].count(":") == 2, f"no narrow screen hides when it began: {row}"
    assert planted.ctl("mode", "hold", "auto").code == 0
    finished(planted, id)
