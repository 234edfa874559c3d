"""Agents in worktrees, with a real daemon: side by side, across its SIGKILL, looked at and merged with omnictl."""

import os
from pathlib import Path

from tests.e2e.harness import Home, until
from tests.fakes.repository import Repository, write

AGENTS = 5
AGENT = """#!/bin/sh
echo "$1" > "$1.txt"
touch "$2.started"
cat "$2.go" >> "$1.txt"
"""


def test_agents_side_by_side_outlive_the_daemon_and_are_merged(home: Home) -> None:
    program = home.root / "bin" / "agent"
    write(program, AGENT)
    program.chmod(0o755)
    repository = Repository(home.root / "repo")
    section = f'[[executor]]\nname = "agent"\nkind = "command"\nargv = ["{program}"]\nworkspace = "worktree"\n'
    home.configure(f"{section}[daemon]\nslots_max = {AGENTS}\n")
    home.start()
    names = [f"part{number}" for number in range(AGENTS)]
    for name in names:
        os.mkfifo(home.work / f"{name}.go")
        options = ("--executor", "agent", "--cwd", str(repository.path))
        assert home.ctl("add", *options, "--", name, str(home.work / name)).code == 0
    until(lambda: all((home.work / f"{name}.started").exists() for name in names), "all of them at work")
    home.kill()
    for name in names:
        (home.work / f"{name}.go").write_text("done\n")
    home.start()
    tasks = [f"t{number + 1}" for number in range(AGENTS)]
    assert home.ctl("wait", *tasks).code == 0
    listed = home.ctl("workspaces").out.splitlines()[1:]
    assert [line.split()[:2] for line in listed] == [[task, "kept"] for task in tasks]
    assert "+done" in home.ctl("diff", "t1").out
    assert "part0.txt" in home.ctl("diff", "t1", "--stat").out
    assert "omnid/t1-" in home.ctl("show", "t1").out
    assert home.ctl("workspaces", "rm", "t2").code == 2
    assert home.ctl("workspaces", "rm", "t2", "--yes").code == 0
    for task in tasks[:1] + tasks[2:]:
        said = home.ctl("merge", task)
        assert said.code == 0, said
    assert sorted(path.name for path in repository.path.glob("part*")) == [
        f"{name}.txt" for name in names if name != "part1"
    ]
    assert (repository.path / "part0.txt").read_text() == "part0\ndone\n"
    assert (repository.branches(), repository.worktrees()) == ({"main"}, [])
    assert list(Path(home.state, "workspaces").iterdir()) == []
    assert home.ctl("diff", "t1").err.startswith("omnictl: t1 has no workspace.")
