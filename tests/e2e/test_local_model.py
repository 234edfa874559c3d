"""The brainstem of a real daemon: the real server of MLX on a tiny model, fetched, tried, woken, asked and killed."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from omnid.weights import find
from tests.e2e.harness import TOLD, Home, until
from tests.fakes.cloud import cloud
from tests.fakes.hub import REVISION, Hub
from tests.fakes.hub import hub as serve
from tests.fakes.tiny_model import make

KEY = "sk-planted-local-model"
SLOW_S = 90.0


@pytest.fixture(scope="module")
def fake_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that has the tiny model."""
    with serve() as made:
        for path in make(tmp_path_factory.mktemp("tiny")).iterdir():
            made.files[path.name] = path.read_bytes()
        made.large = {"model.safetensors"}
        yield made


@pytest.fixture
def sky() -> Iterator[Callable[[int], Any]]:
    """Gives clouds that can be taken away: each is served at a port inside a `with`."""
    with start_blocking_portal() as portal:
        yield lambda port: portal.wrap_async_context_manager(cloud(port))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Ground:
    """A home with one channel of the cloud, which isn't there, and the tiny model at a hub."""

    def __init__(self, home: Home, hub: Hub) -> None:
        self.home = home
        self.cloud_port = free_port()
        self.told = home.root / "told"
        self.brainstem = {
            "weights": hub.name,
            "hub": hub.url,
            "base_url": f"http://127.0.0.1:{free_port()}/v1",
        }
        home.environ["P1_KEY"] = KEY

    def configure(self, more: str = "", **brainstem: Any) -> None:
        section = "\n".join(f"{key} = {json.dumps(value)}" for key, value in (self.brainstem | brainstem).items())
        url = f"http://127.0.0.1:{self.cloud_port}/ok/v1"
        channel = f'[[channel]]\nname = "p1"\nprofile = "openrouter"\nbase_url = "{url}"\nkey = "env:P1_KEY"\n'
        models = 'models = [{ name = "fake-1", input_usd = 1, output_usd = 2 }]\n'
        mode = "[mode]\ncloud_probe_every_s = 0.3\ncloud_failures_max = 1\n"
        notices = TOLD.format(told=self.told)
        self.home.configure(f"[brainstem]\n{section}\n{mode}{notices}{channel}{models}{more}")

    def pulled(self) -> None:
        done = self.home.ctl("model", "pull")
        assert done.code == 0, done.err

    def prompt(self, text: str, **more: Any) -> str:
        return str(self.home.client.call("omnid/task.submit", {"prompt": text, **more})["id"])

    def why(self, id: str) -> str:
        return str(self.home.client.get(id)["why"])

    def outage(self) -> str:
        """Submits a prompt that can't be answered, and waits until the mode has turned; gives the prompt."""
        parked = self.prompt("say hello", labels=["night"])
        until(lambda: self.home.client.status()["mode"] == "brainstem", "the mode", SLOW_S)
        return parked

    def local(self) -> dict[str, Any]:
        return dict(self.home.client.call("omnid/mode.show", {})["local_model"])

    def finding(self) -> dict[str, Any]:
        findings = self.home.client.call("omnid/doctor", {})["findings"]
        return next(one for one in findings if one["name"] == "local model")

    def says(self, text: str) -> bool:
        return self.told.exists() and text in self.told.read_text()


@pytest.fixture
def place(home: Home, fake_hub: Hub) -> Iterator[Ground]:
    yield Ground(home, fake_hub)
    home.stop()
    for path in home.root.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def finished(place: Ground, id: str) -> dict[str, Any]:
    view = place.home.client.wait(id, SLOW_S)
    assert view["task"]["state"] == "completed", view["why"]
    return view


def test_the_cloud_goes_the_real_model_answers_and_its_memory_comes_back(
    place: Ground, sky: Callable[[int], Any]
) -> None:
    home = place.home
    place.configure(context_tokens=4200)
    home.start()
    before = place.finding()
    assert (before["ok"], before["detail"]) == (False, "the model test/tiny is not in the cache")
    assert before["do"] == "omnictl model pull test/tiny"
    place.pulled()
    assert place.finding()["ok"]
    parked = place.outage()
    asked = place.prompt("say something", offline="local")
    view = finished(place, asked)
    assert "The call went to brainstem (default_model) directly" in view["why"]
    assert view["money"]["amounts"]["spent_usd"] == 0
    held = place.local()
    assert (held["phase"], held["memory_bytes"] > 30 << 20) == ("ready", True)
    shown = home.ctl("ask", "why does nothing happen?")
    assert shown.code == 0
    assert "brainstem (default_model) was given these facts:" in shown.out
    flat = " ".join(shown.out.split())
    assert "omnid has been in the mode brainstem for" in flat
    assert "1 tasks of model wait for cloud (1 labelled night)." in flat
    long = place.prompt("word " * 500, offline="local")
    until(lambda: "don't fit in 4200" in place.why(long), lambda: place.why(long), SLOW_S)
    with sky(place.cloud_port):
        finished(place, parked)
        finished(place, long)
        until(lambda: place.local()["phase"] == "asleep", lambda: str(place.local()), SLOW_S)
        returned = place.local()["returned_bytes"]
        assert returned > 30 << 20
        assert "the last one returned" in " ".join(home.ctl("mode").out.split())
        assert not [line for line in home.processes().values() if "worker/brainstem.py" in line]
        until(lambda: place.says("GiB of memory are free again."), "the notice", SLOW_S)
    assert "brainstem_killed" in (home.state / "omnid.log").read_text()


def test_with_too_little_memory_it_stays_asleep_and_says_so_everywhere(place: Ground) -> None:
    home = place.home
    place.configure(memory_bytes_min=1 << 60)
    place.pulled()
    home.start()
    assert "MiB of memory, and only" in place.finding()["detail"]
    place.outage()
    asked = place.prompt("say something", offline="local")
    until(lambda: "stays asleep: it needs" in place.why(asked), lambda: place.why(asked), SLOW_S)
    status = home.client.status()
    assert [one["code"] for one in status["problems"]] == ["local_model_asleep"]
    assert "The local model stays asleep: it needs" in " ".join(home.ctl("status").out.split())
    assert "asleep: it needs" in home.ctl("mode").out
    until(lambda: place.says("The local model stays asleep: it needs"), "the notice", SLOW_S)
    shown = home.ctl("ask")
    assert "omnid has been in the mode brainstem" in shown.out
    assert "No model put this into words: it needs" in shown.err


def test_while_the_cloud_is_there_it_is_only_woken_by_who_says_so(place: Ground, sky: Callable[[int], Any]) -> None:
    home = place.home
    place.configure(idle_s=0.5)
    with sky(place.cloud_port):
        home.start()
        assert "not in the cache" in home.ctl("model", "preload").out
        place.pulled()
        tried = home.ctl("model", "preload")
        assert tried.code == 0, tried.out
        assert "The local model was ready after" in tried.out
        assert "it was killed again" in tried.out
        assert place.local()["phase"] == "asleep"
        done = home.sh("exit 3", attempts_max=1)
        home.wait(done)
        shown = home.ctl("ask", f"what became of {done}?")
        assert "the local model sleeps while the cloud is there (--wake wakes it)" in " ".join(shown.err.split())
        assert f"- {done} (/bin/sh -c exit 3): " in " ".join(shown.out.split())
        assert place.local()["phase"] == "asleep"
        facts = home.client.call("omnid/state.ask", {"question": "t99?", "facts_only": True})
        assert facts["text"] == facts["account"]
        assert "There is no task t99." in facts["facts"]
        shown = home.ctl("ask", "--wake")
        assert "brainstem (default_model) was given these facts:" in shown.out
        until(lambda: place.local()["phase"] == "asleep", "that it is idle", SLOW_S)


def test_the_cache_without_a_daemon(place: Ground, fake_hub: Hub) -> None:
    home = place.home
    place.configure()
    assert home.ctl("model", "list").err == "The cache is empty; `omnictl model pull` fetches test/tiny.\n"
    missing = home.ctl("model", "verify", "--json")
    assert (missing.code, json.loads(missing.out)["error"]["code"]) == (1, "model_missing")
    place.pulled()
    listed = home.ctl("model", "list", "--json")
    (model,) = json.loads(listed.out)["result"]["models"]
    assert (model["name"], model["revision"], model["damaged"]) == ("test/tiny", REVISION, [])
    assert "whole" in home.ctl("model", "list", environ={"COLUMNS": "200"}).out
    found = find(str(home.state / "models"), "test/tiny")
    assert found is not None
    assert home.ctl("model", "verify").out == "ok  test/tiny: whole\n"
    with Path(found.directory, "model.safetensors").open("r+b") as file:
        file.write(b"\xff")
    damaged = home.ctl("model", "verify")
    assert damaged.code == 1
    assert "damaged: model.safetensors; do: omnictl model pull test/tiny" in " ".join(damaged.out.split())
    home.start()
    assert place.finding()["detail"] == "the model test/tiny is damaged: model.safetensors"
    place.pulled()
    assert place.finding()["ok"]
    assert home.ctl("model", "pull", "tiny").code == 2
    assert home.ctl("model", "sing").code == 2
    assert home.ctl("model", "list", "--only", "x").code == 2
    fake_hub.status = [404]
    refused = home.ctl("model", "pull", "test/other")
    assert "The hub" in refused.err
    assert "does not give test/other: HTTP 404" in refused.err


def test_the_worker_of_the_one_binary_is_the_server(home: Home) -> None:
    argv = [sys.executable, "-m", "omnid", "worker", "brainstem", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SLOW_S, env=home.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "--allowed-origins" in done.stdout
