"""What README.md says is done here, as it stands there; and what the docs point to is there."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import OMNICTL, WAIT_S, Home, home_at

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCKS = [(match[1], match[2]) for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def omnid() -> Iterator[Home]:
    """A home as a person has it: everything where it is without any variable, and a project to build."""
    with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as root, home_at(Path(root)) as home:
        home.state = home.root / ".local" / "state" / "omnid"
        home.socket = home.state / "omnid.sock"
        kept = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "MAKEFLAGS", "MAKELEVEL", "OMNID_STATE", "OMNID_CONFIG", "COLUMNS")
        home.environ = {name: value for name, value in home.environ.items() if name not in kept}
        (home.root / "project").mkdir()
        (home.root / "project" / "Makefile").write_text("test:\n\t@echo 41 passed\n")
        yield home


def run(home: Home, argv: list[str], stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, env=home.environ, cwd=home.root, timeout=WAIT_S, check=False
    )


def test_every_block_is_one_that_is_tried_here():
    assert [name for name, _ in BLOCKS] == ["sh", "console", "sh", "python"]


def test_the_first_session_goes_as_it_is_shown(omnid):
    (session,) = blocks("console")
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert program == "omnictl"
        done = run(omnid, [*OMNICTL, *arguments])
        assert likeness(done.stdout, omnid) == likeness(shown, omnid), done.stderr


def likeness(text: str, home: Home) -> str:
    """Takes out what differs from one time to the next; a longer path may move the ends of lines."""
    text = text.replace(str(home.root), "/home/me")
    text = re.sub(r"pid \d+", "pid N", text)
    return re.sub(r"\bnow\b|\d+ s ago", "NOW", re.sub(r"\s+", " ", text))


def test_the_python_example_works(omnid):
    (example,) = blocks("python")
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 5
    run(omnid, [*OMNICTL, "up"])
    for _ in range(2):
        done = run(omnid, [sys.executable, "-c", example])
        assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr
    assert len(run(omnid, [*OMNICTL, "list"]).stdout.splitlines()) == 2
    run(omnid, [*OMNICTL, "down"])


def test_what_claude_is_told_to_start_speaks_mcp(omnid):
    command = blocks("sh")[1].strip().partition(" -- ")[2]
    assert command == "omnid mcp"
    hello = (
        '{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",'
        ' "capabilities": {}, "clientInfo": {"name": "claude-code", "version": "1"}}}\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=omnid.environ,
        cwd=omnid.root,
        text=True,
    )
    with process:
        process.stdin.write(hello)
        process.stdin.flush()
        assert '"serverInfo":{"name":"omnid"' in process.stdout.readline().replace('": ', '":')
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
    run(omnid, [*OMNICTL, "down"])


@pytest.mark.parametrize("line", blocks("sh")[0].splitlines())
def test_the_two_commands_are_targets(line):
    make, target = line.split()
    assert make == "make"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert {"demo": "omnictl demo", "test": "-m pytest"}[target] in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_is_there(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"`((?:omnid|tests|docs|config|scripts|bench)/[\w./-]*)`", text)
    missing += [path for path in named if not (ROOT / path).exists()]
    assert missing == []
