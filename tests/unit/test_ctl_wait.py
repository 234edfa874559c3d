"""Waiting with omnictl, by ``wait`` and ``add --wait``: how it ends, and what it says meanwhile."""

from omnid import errors
from tests.fakes.ctl_world import NOW_MS, SUBMITTED, Daemon, Ran, brief, down, ended, view


def test_wait_ends_with_the_tasks():
    daemon = Daemon(task__get=[view(), ended(), ended("failed", "t8")])
    ran = Ran("wait", "t7", "t8", daemon=daemon)
    assert (ran.code, ran.out, ran.err) == (1, "t7  t7 is completed.\nt8  t8 is failed.\n", "")
    assert Ran("wait", "t7", daemon=Daemon(task__get=ended())).code == 0


def test_wait_times_out_and_still_tells_of_all():
    ran = Ran("wait", "t7", "t8", "--timeout", "60s", "--json", daemon=Daemon(task__get=view()))
    assert ran.code == 124
    assert ran.json["result"]["timed_out"] is True
    assert len(ran.json["result"]["tasks"]) == 2
    assert {params["wait_s"] for _, params in ran.calls} >= {0.0, 50.0}


def test_a_task_that_needs_a_key_is_not_waited_for():
    keyless = view(brief(state="idle", reason="login", name="t8"), why="t8 waits because executor x needs a key.")
    ran = Ran("wait", "t8", "t7", daemon=Daemon(task__get=[keyless, ended()]))
    assert (ran.code, ran.out) == (4, "t8  t8 waits because executor x needs a key.\nt7  t7 is completed.\n")
    daemon = Daemon(task__submit=SUBMITTED, task__get=[view(), keyless])
    assert Ran("add", "--wait", "--wait-timeout", "99s", "--", "x", daemon=daemon).code == 4
    done = view(brief(state="completed", reason="login", finished_at_ms=NOW_MS))
    assert Ran("wait", "t7", daemon=Daemon(task__get=done)).code == 0


def test_wait_goes_on_over_a_restart_and_gives_up_on_a_daemon_that_stays_away():
    assert Ran("wait", "t7", daemon=Daemon(task__get=[view(), down(), down(), ended()])).code == 0
    assert Ran("wait", "t7", daemon=Daemon(task__get=[view(), down()])).code == 3
    bounded = Ran("wait", "t7", "--timeout", "55s", daemon=Daemon(task__get=[view(), down()]))
    assert bounded.code == 3
    assert len(bounded.calls) < 10
    lost = errors.Retryable("daemon_lost", detail="It broke.")
    assert Ran("wait", "t7", daemon=Daemon(task__get=[lost, down(), ended()])).code == 0
    ran = Ran("wait", "t7", daemon=Daemon(task__get=[down(), ended()]))
    assert (ran.code, len(ran.calls)) == (3, 1)


def test_waiting_shows_progress_on_a_terminal_and_takes_it_away():
    ran = Ran("wait", "t7", daemon=Daemon(task__get=[view(), ended()]), terminal=True)
    assert "t7 executing" in ran.err
    assert ran.err.endswith("\r\x1b[K")
    assert ran.calls[0][1]["wait_s"] == 1.0


def test_add_and_wait():
    assert Ran("add", "--wait", "--", "x", daemon=Daemon(task__submit=SUBMITTED, task__get=ended())).code == 0
    assert Ran("add", "--wait", "--", "x", daemon=Daemon(task__submit=SUBMITTED, task__get=ended("failed"))).code == 1
    daemon = Daemon(task__submit=SUBMITTED, task__get=view())
    assert Ran("add", "--wait", "--", "x", daemon=Daemon(task__submit=SUBMITTED, task__get=ended())).err == (
        "t7 is accepted.\n"
    )
    ran = Ran("add", "--wait", "--wait-timeout", "5s", "--", "x", daemon=daemon)
    assert ran.code == 75
    assert "Accepted and not done yet" in ran.err
