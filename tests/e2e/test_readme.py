"""What README.md says is done here, as it stands there; and what the docs point to is there."""

import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from omnid import config
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


def run(home: Home, argv: list[str], stdin: str = "", cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environ, at = home.environ, cwd or home.root
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, env=environ, cwd=at, timeout=WAIT_S, check=False
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
    named = re.findall(
        r"`((?:omnid|tests|docs|config|scripts|bench)/[\w./-]*(?:\.(?:py|sql|md|toml)|/))(?:::(\w+))?`", text
    )
    missing += [path for path, _ in named if not (ROOT / path).exists()]
    missing += [test for path, test in named if test and f"def {test}(" not in (ROOT / path).read_text()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_settings_that_a_page_shows_are_taken(page, tmp_path):
    for number, text in enumerate(re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert config.check({"HOME": str(tmp_path)}, str(path)) == []


def test_every_page_is_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+\.md)\)", page.read_text())}
        new |= links - reached
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= reached


def test_the_journal_can_be_read_as_its_page_says(omnid):
    text = (ROOT / "docs" / "journal.md").read_text()
    query, copy = re.findall(r"journal\.db(?: \\\n)? +\"(.*?)\"$", text, re.MULTILINE)
    run(omnid, [*OMNICTL, "up"])
    run(omnid, [*OMNICTL, "add", "--wait", "--", "true"])
    with closing(sqlite3.connect(f"file:{omnid.state}/journal.db?mode=ro", uri=True)) as journal:
        assert journal.execute(query).fetchall() == [(1, "completed", "true")]
        tables = {name for (name,) in journal.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    described = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    assert tables <= set(described)
    with closing(sqlite3.connect(omnid.state / "journal.db")) as journal:
        journal.execute(copy.replace("copy.db", f"{omnid.root}/copy.db"))
    with closing(sqlite3.connect(omnid.root / "copy.db")) as journal:
        assert journal.execute(query).fetchall() == [(1, "completed", "true")]
    run(omnid, [*OMNICTL, "down"])
