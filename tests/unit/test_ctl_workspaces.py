"""What `omnictl diff`, `merge` and `workspaces` say, and what they ask."""

import msgspec
import pytest

from omnid.api import shapes_workspaces as places
from tests.fakes.ctl_world import PLACE, Daemon, Ran, view

TO = "0" * 40


def piece(text, following=None):
    return places.DiffPart(text, TO, following, PLACE)


def test_a_diff_is_put_together_from_its_pieces():
    daemon = Daemon(workspace__diff=[piece("diff --git a/x b/x\n@@ -1 +1 @@\n-o", 30), piece("ne\n+t\two\r\n")])
    ran = Ran("diff", "t7", daemon=daemon)
    assert ran.out == "diff --git a/x b/x\n@@ -1 +1 @@\n-one\n+t\two\n"
    assert ran.err == "Note: uncommitted changes of /r are not in it: a\n"
    assert [params.get("to") for _, params in ran.calls] == [None, TO]
    assert [params["offset_bytes"] for _, params in ran.calls] == [0, 30]


def test_a_terminal_gets_colours_and_nothing_that_it_would_obey():
    daemon = Daemon(workspace__diff=piece("@@ -1 +1 @@\n-\x1b[2Jone\n+two\n same"))
    ran = Ran("diff", "t7", daemon=daemon, terminal=True)
    lines = ["\x1b[36m@@ -1 +1 @@", "\x1b[31m-\\x1b[2Jone", "\x1b[32m+two"]
    assert ran.out == "".join(f"{line}\x1b[0m\n" for line in lines) + " same\n"


def test_raw_is_for_pipes():
    daemon = Daemon(workspace__diff=piece("+\x1b[2J\r\n"))
    assert Ran("diff", "t7", "--raw", daemon=daemon).out == "+\x1b[2J\r\n"
    ran = Ran("diff", "t7", "--raw", daemon=daemon, terminal=True)
    assert (ran.code, ran.out) == (2, "")


def test_stat_is_passed_on():
    assert Ran("diff", "t7", "--stat", daemon=Daemon(workspace__diff=piece(""))).calls[0][1]["stat"] is True


@pytest.mark.parametrize(
    ("commits", "files", "removed", "lines"),
    [
        (
            1,
            ["a"],
            True,
            [
                "t7 is merged into main of /r: 1 commit, 1 files.",
                "   a",
                "Its workspace and its branch omnid/t7-0 are removed.",
            ],
        ),
        (
            0,
            [],
            False,
            ["t7 has nothing that main of /r doesn't have already.", "Its workspace stays: look at it."],
        ),
    ],
)
def test_a_merge_says_what_it_did(commits, files, removed, lines):
    merged = places.WorkspaceMerged("t7", "/r", "main", "omnid/t7-0", commits, files, removed, ["look at it"])
    assert Ran("merge", "t7", daemon=Daemon(workspace__merge=merged)).out.splitlines() == lines


def test_a_merge_of_many_files_names_the_first():
    merged = places.WorkspaceMerged("t7", "/r", "main", "b", 2, [f"f{n}" for n in range(25)], True, [])
    out = Ran("merge", "t7", daemon=Daemon(workspace__merge=merged)).out
    assert "2 commits, 25 files" in out
    assert "   and 5 more" in out
    assert "   f20" not in out


def test_the_list_shows_size_age_and_state():
    ran = Ran("workspaces", daemon=Daemon(workspace__list=places.WorkspaceList([PLACE], 12_300, 50, 20_000_000_000)))
    header, row, note = ran.out.splitlines()
    assert header.split() == ["TASK", "STATE", "SIZE", "AGE", "BRANCH", "FROM"]
    assert row.split() == ["t7", "kept", "12", "kB", "10", "min", "omnid/t7-0", "/r"]
    assert note == "t7:  uncommitted changes of /r are not in it: a"
    assert ran.err.startswith("1 of 50, 12 kB of 20 GB; ")
    assert (
        Ran("workspaces", daemon=Daemon(workspace__list=places.WorkspaceList([], 0, 50, 1))).err == "No workspaces.\n"
    )


def test_a_removal_asks_with_what_would_be_lost():
    empty = msgspec.structs.replace(PLACE, task="t8", task_id="8", condition="empty")
    script = {
        "workspace__list": places.WorkspaceList([PLACE, empty], 1, 50, 99),
        "workspace__remove": places.WorkspaceRemoved(PLACE),
    }
    ran = Ran("workspaces", "rm", "t7", "t8", daemon=Daemon(**script), stdin="n\n", terminal=True)
    assert ran.code == 1
    assert ran.err.startswith("Remove the workspace of t7 (kept, and what it holds is nowhere else); t8 (empty)?")
    assert [name for name, _ in ran.calls] == ["workspace.list"]
    ran = Ran("workspaces", "rm", "t7", daemon=Daemon(**script), stdin="y\n", terminal=True)
    assert ran.out == "t7: /w/t7-0 is removed\n"
    ran = Ran("workspaces", "rm", "t7", daemon=Daemon(**script))
    assert ran.code == 2
    assert "--yes" in ran.err
    assert [name for name, _ in Ran("workspaces", "rm", "t7", "--yes", daemon=Daemon(**script)).calls] == [
        "workspace.remove"
    ]


@pytest.mark.parametrize("words", [("rm",), ("t7",), ("list", "t7")])
def test_it_takes_nothing_else(words):
    assert Ran("workspaces", *words, daemon=Daemon()).code == 2


def test_show_names_the_workspace():
    place = {"path": "/w/t7-0/sub", "branch": "omnid/t7-0", "base": "0123456789abcdef", "notes": ["look at it"]}
    out = Ran("show", "t7", daemon=Daemon(task__get=view(workspace=place))).out
    assert "workspace    /w/t7-0/sub (on omnid/t7-0, from 0123456789)" in out
    assert "look at it" in out
    copy = {**place, "branch": None, "base": None, "notes": []}
    assert "/w/t7-0/sub (a copy)" in Ran("show", "t7", daemon=Daemon(task__get=view(workspace=copy))).out
