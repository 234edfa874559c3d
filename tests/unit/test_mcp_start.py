"""How a session with an MCP server begins: servers that ignore what they don't know, and tools that are no tools."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from omnid.errors import Retryable
from tests.unit.test_mcp_executor import Bench, bench, problem

pytestmark = pytest.mark.anyio


async def test_a_server_that_ignores_discover_is_not_waited_for_and_not_asked_again(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.executor.mcp_inbox.DISCOVER_S", 0.05)
    async with bench(tmp_path, {"discover_s": 0}, start_timeout_s=5.0) as fake:
        assert (await fake.run("echo", text="a")).output == "a"
        assert len(fake.ledger("ignored")) == 1
        await fake.run("die_again")
        assert (await fake.run("echo", text="b")).output == "b"
        assert len(fake.ledger("started")) == len(fake.ledger("initialized")) == 2
        assert len(fake.ledger("ignored")) == 1


@pytest.mark.parametrize("era", ["old", "new"])
async def test_a_server_that_is_slow_to_answer_discover_is_spoken_to_in_its_era(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    monkeypatch.setattr("omnid.executor.mcp_inbox.DISCOVER_S", 0.05)
    async with bench(tmp_path, {"discover_s": 0.5, "era": era}) as fake:
        assert (await fake.run("add", a=1, b=2)).value == {"sum": 3}
        assert bool(fake.ledger("initialized")) == (era == "old")
        assert fake.executor._keeper._era == "auto", "it was slow, not of an older era"


async def test_a_server_that_left_the_older_era_is_asked_again_after_one_failure(
    anyio_backend: str, tmp_path: Path
) -> None:
    async with bench(tmp_path, {"era": "new"}) as fake:
        fake.executor._keeper._era = "legacy"
        with pytest.raises(Retryable):
            await fake.executor.probe()
        await fake.executor.probe()
        assert (await fake.run("echo", text="a")).output == "a"


@pytest.fixture(params=["old", "new"])
async def odd(anyio_backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[Bench]:
    async with bench(tmp_path, {"odd_tools": True, "era": request.param, "pages": 2}) as made:
        yield made


async def test_a_tool_that_is_described_wrongly_is_refused_alone(odd: Bench) -> None:
    assert (await odd.run("echo", text="a")).output == "a"
    for tool, says in {
        "no_schema": "inputSchema",
        "schema_of_text": "inputSchema",
        "schema_is_text": "inputSchema",
        "odd_hints": "annotations",
    }.items():
        outcome, code, what = problem(await odd.run(tool))
        assert (outcome, code) == ("rejected", "bad_tool")
        assert tool in what
        assert says in what
    assert problem(await odd.run("nowhere"))[:2] == ("rejected", "unknown_tool")
    assert len(odd.ledger("started")) == 1
    assert {line["tool"] for line in odd.log("mcp_tool_refused")} >= {"no_schema", "odd_hints", "None"}
