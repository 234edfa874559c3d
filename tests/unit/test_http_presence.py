"""Who asks over HTTP is there, and is missed a while after its last request where its work goes on."""

from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from omnid.api import http_presence
from omnid.api.http_presence import Asker
from omnid.daemon import Daemon
from omnid.flow.presence import Presence
from tests.fakes.home import Home
from tests.fakes.web import ERAS, TOKEN, bare, connected, listen, url

pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]
LATER = {"argv": ["true"], "not_before_ms": 1 << 45}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for another request, unless a test says so."""
    monkeypatch.setattr(http_presence, "QUIET_S", 0.0)


async def away(daemon: Daemon) -> list[Any]:
    rows = await daemon.store.read(lambda reader: list(reader.all("outages_after", 0, 99)))
    return [row[1] for row in rows if row[0] == "client" and row[3] is None]


async def missed(daemon: Daemon, *origins: str) -> None:
    """Waits until it is written down that these are away, and nobody else."""
    with anyio.fail_after(10):
        while await away(daemon) != [*origins]:
            await checkpoint()


async def test_who_is_named_after_the_request_has_ended_has_gone() -> None:
    heard: list[tuple[Any, ...]] = []

    class Heard:
        def came(self, *what: Any) -> None:
            heard.append(("came", *what))

        def went(self, *what: Any) -> None:
            heard.append(("went", *what))

    asker = Asker(cast("Presence", Heard()), -1)
    asker.done()
    asker.named("claude")
    assert heard == [("came", "claude", -1), ("went", "claude", -1, http_presence.QUIET_S)]


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_of_mcp_is_missed_under_its_own_name_and_returns(
    home: Home, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.path / "token").write_text(f"{TOKEN}\n")
    listen(home, token=f"file:{home.path}/token")
    async with home.daemon() as daemon:
        async with connected(daemon, mode, TOKEN) as client:
            await client.call_tool("task_submit", {**LATER, "key": "k"})
        await missed(daemon, "tester")
        async with connected(daemon, mode, TOKEN, name="another") as client:
            await client.call_tool("status", {})
            assert await away(daemon) == ["tester"]
        monkeypatch.setattr(http_presence, "QUIET_S", 60.0)
        async with connected(daemon, mode, TOKEN) as client:
            await client.call_tool("status", {})
        await missed(daemon)


async def test_a_request_with_an_origins_token_counts_for_it_and_one_without_a_name_for_nobody(home: Home) -> None:
    home.environ |= {"WORD": TOKEN, "CI": "the-token-of-the-ci"}
    listen(home, token="env:WORD")
    with home.file.open("a") as config:
        config.write('[agents]\nallow = ["command"]\n[[origin]]\nname = "ci"\ntoken = "env:CI"\n')
    async with bare(home) as (daemon, http):
        for token in (TOKEN, home.environ["CI"]):
            task = {**LATER, "cwd": "/"}
            said = await http.post(
                url(daemon, "/api/v1/tasks"), json=task, headers={"Authorization": f"Bearer {token}"}
            )
            assert said.status_code == 201, said.text
        await missed(daemon, "ci")
