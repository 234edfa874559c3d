"""What docs/agents.md says is done here, as it stands there, with a scripted agent as `claude`."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omnid.ctl import demo_agent
from omnid.ctl.demo import night_zone
from tests.e2e.harness import OMNICTL, Home
from tests.e2e.test_readme import likeness, omnid, run

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COSTS_USD = {"fix the login bug": 0.42, "write tests for the parser": 0.31, "make the search faster": 0.87}
COSTS_USD |= {"write the release notes in notes.txt": 0.12, "rename the old modules": 0.28}

__all__ = ["omnid"]


@pytest.fixture
def shop(omnid: Home) -> Home:
    """A person with the page's config, a repository, and a `claude`; it is night where they are."""
    config = omnid.root / ".config" / "omnid" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("".join(text for kind, text in BLOCKS if kind == "toml"))
    agents = omnid.root / "agents"
    agents.mkdir()
    script = {prompt: {"name": prompt, "cost_usd": cost_usd} for prompt, cost_usd in COSTS_USD.items()}
    script["fix the login bug"] |= {"file": "login.py", "text": "mended = True\n"}
    (agents / demo_agent.SCRIPT).write_text(json.dumps(script))
    claude = omnid.root / "bin" / "claude"
    claude.parent.mkdir()
    argv = [sys.executable, "-I", "-S", demo_agent.__file__, str(agents)]
    claude.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
    claude.chmod(0o700)
    repository = omnid.root / "shop"
    repository.mkdir()
    (repository / "login.py").write_text("mended = False\n")
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "shop"]):
        subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@x", *words], cwd=repository, check=True)
    omnid.environ["PATH"] = f"{claude.parent}:{omnid.environ['PATH']}"
    omnid.environ["OMNID_DAEMON__ZONE"] = night_zone(time.gmtime().tm_hour)
    return omnid


def alike(text: str, home: Home) -> str:
    return re.sub(r"-[0-9a-f]{8}\b", "-ID", likeness(text, home))


def test_every_command_of_the_page_goes_as_it_is_shown(shop: Home) -> None:
    at, ran = shop.root, 0
    for session in (text for kind, text in BLOCKS if kind == "console"):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            program, *arguments = shlex.split(command)
            if program == "cd":
                at = at / arguments[0]
                continue
            assert program == "omnictl"
            done = run(shop, [*OMNICTL, *arguments], cwd=at)
            assert (done.returncode, alike(done.stdout, shop)) == (0, alike(shown, shop)), done.stderr
            ran += 1
    assert ran >= 10
    assert (shop.root / "shop" / "login.py").read_text() == "mended = True\n"
    assert len((shop.root / "agents" / "prompts").read_text().splitlines()) == 5


def test_every_other_command_that_the_page_names_can_be_run(shop: Home) -> None:
    run(shop, [*OMNICTL, "up"])
    for _ in range(2):
        add = [*OMNICTL, "add", "--wait", "--", "claude", "-p", "write tests for the parser"]
        assert run(shop, add, cwd=shop.root / "shop").returncode == 0
    named = set(re.findall(r"`(omnictl [^`]+)`", PAGE))
    assert {"omnictl away", "omnictl receipt t2", "omnictl demo --scenario night"} <= named
    for command in sorted(named):
        done = run(shop, [*OMNICTL, *shlex.split(command)[1:]])
        refused = "retry" in command and "t2 is completed" in " ".join(done.stderr.split())
        assert done.returncode == 0 or refused, done.stderr
    run(shop, [*OMNICTL, "down"])


def test_all_blocks_are_tried() -> None:
    assert {kind for kind, _ in BLOCKS} == {"toml", "console"}
