"""Built-in agents are shown and probed only where somebody has them."""

import shutil

import pytest

from omnid.flow.present import is_present
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


async def test_an_agent_that_is_not_installed_is_not_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.context.config
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/x" if program == "codex" else None)
    assert is_present(config, "codex")
    assert not is_present(config, "claude-code")
    assert is_present(config, "command")
    assert is_present(config, "of somebody's own")
