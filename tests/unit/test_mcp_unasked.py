"""A server whose questions would reach nobody, as on a runner: it is told so at its start, and need not ask."""

from pathlib import Path

import pytest

from omnid.model import InputResponse
from tests.contract.executors import Ports
from tests.unit.test_mcp_executor import bench

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("asks", [True, False])
async def test_who_can_ask_nobody_says_so_and_refuses_questions(anyio_backend: str, tmp_path: Path, asks: bool) -> None:
    async with bench(tmp_path) as fake:
        if not asks:
            fake.executor.asks_nobody()
        fake.ports = Ports(InputResponse("decline"))
        assert (await fake.run("ask")).output == "asked"
        (declared,) = fake.ledger("declared")
        assert ("elicitation" in declared) is asks
        assert bool(fake.ports.asked) is asks
        print(fake.ledger("error"))
        assert isinstance(fake.ledger("error")[-2], int) is not asks, "a question all the same is an error"
