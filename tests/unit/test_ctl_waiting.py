"""Waiting that ends before the task has: where only a person helps."""

from tests.fakes.ctl_world import SUBMITTED, Daemon, Ran, brief, ended, view


def test_waiting_ends_where_only_a_login_helps():
    waits = view(brief(state="idle", reason="login"), why="t7 waits because claude-code needs a person.")
    ran = Ran("wait", "t8", "t7", daemon=Daemon(task__get=[ended(), view(), waits]))
    assert ran.code == 4
    assert "claude-code needs a person" in ran.out
    assert Ran("add", "--wait", "--", "x", daemon=Daemon(task__submit=SUBMITTED, task__get=waits)).code == 4
