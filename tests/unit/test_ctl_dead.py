"""``omnictl dead`` and ``omnictl reply``, and what the status shows of the outbox."""

import pytest

from omnid.api import shapes, shapes_outbox
from tests.fakes.ctl_world import CONTROLLED, NOW_MS, PROBLEM, Daemon, Ran, status

DEAD = shapes_outbox.DeadView(
    "1f-ab", "chat", "answer", "t", {"task": "t7", "text": "t7 is done"}, NOW_MS - 9_000, NOW_MS - 60_000, 3, PROBLEM
)
OTHER = shapes_outbox.DeadView("2f-ab", "notice/desktop", "notice", "claude", {}, NOW_MS, NOW_MS, 1, None)

CAME = shapes_outbox.DeadView(
    "3f-ab",
    "link/cable",
    "message",
    "d1",
    {"from": "gpu-1", "message": "result", "bytes": 5000, "text": "{\x1b[31m"},
    NOW_MS,
    NOW_MS - 60_000,
    1,
    PROBLEM,
)


def test_the_dead_are_listed_page_by_page():
    pages = [shapes_outbox.DeadPage([DEAD], 5), shapes_outbox.DeadPage([OTHER], None)]
    ran = Ran("dead", "--all", daemon=Daemon(dead__list=pages), environ={"COLUMNS": "200"})
    assert [params for _, params in ran.calls] == [{"limit": 500}, {"limit": 500, "after": 5}]
    assert "1f-ab" in ran.out
    assert "answer t7" in ran.out
    assert PROBLEM.what in ran.out
    assert "notice claude" in ran.out
    ran = Ran("dead", "--cursor", "4", "--limit", "1", daemon=Daemon(dead__list=pages[0]))
    assert ran.calls == [("dead.list", {"after": 4, "limit": 1})]
    assert "the same with --cursor 5, or with --all" in ran.err
    ran = Ran("dead", "list", daemon=Daemon(dead__list=shapes_outbox.DeadPage([], None)))
    assert (ran.code, ran.out, ran.err) == (0, "", "Nothing was given up.\n")


def test_one_is_shown_with_its_text_and_its_problem():
    ran = Ran("dead", "show", "1f-ab", daemon=Daemon(dead__show=DEAD))
    assert ran.calls == [("dead.show", {"id": "1f-ab"})]
    assert "t7 is done" in ran.out
    assert "after 3 tries" in ran.out
    assert PROBLEM.what in ran.out
    ran = Ran("dead", "show", "1f-ab", "--json", daemon=Daemon(dead__show=DEAD))
    assert ran.json["result"]["deliveries"][0]["id"] == "1f-ab"


@pytest.mark.parametrize(("action", "said"), [("retry", "is tried again"), ("drop", "was dropped")])
def test_they_are_retried_and_dropped_one_by_one_or_all(action: str, said: str):
    answers = {f"dead__{action}": DEAD}
    ran = Ran("dead", action, "1f-ab", "x", daemon=Daemon(**answers))
    assert ran.calls == [(f"dead.{action}", {"id": "1f-ab"}), (f"dead.{action}", {"id": "x"})]
    assert said in ran.out
    ran = Ran("dead", action, "all", daemon=Daemon(dead__list=shapes_outbox.DeadPage([DEAD, OTHER], None), **answers))
    assert [params.get("id") for _, params in ran.calls] == [None, "1f-ab", "2f-ab"]
    pages = [shapes_outbox.DeadPage([DEAD], 5), shapes_outbox.DeadPage([OTHER], None)]
    ran = Ran("dead", action, "all", daemon=Daemon(dead__list=pages, **answers))
    assert [params.get("id") for _, params in ran.calls] == [None, None, "1f-ab", "2f-ab"]


def test_what_came_over_a_link_is_shown_and_dropped_and_all_of_the_rest_is_retried():
    ran = Ran("dead", "show", "3f-ab", daemon=Daemon(dead__show=CAME))
    assert "3f-ab  result from gpu-1 over link/cable" in ran.out
    assert "5000 bytes" in ran.out
    assert "\x1b" not in ran.out
    assert "tries" not in ran.out
    page = shapes_outbox.DeadPage([CAME, OTHER], None)
    ran = Ran("dead", daemon=Daemon(dead__list=page), environ={"COLUMNS": "200"})
    assert "result from gpu-1" in ran.out
    for action, ids in (("retry", ["2f-ab"]), ("drop", ["3f-ab", "2f-ab"])):
        ran = Ran("dead", action, "all", daemon=Daemon(dead__list=page, **{f"dead__{action}": OTHER}))
        assert [params["id"] for _, params in ran.calls[1:]] == ids


@pytest.mark.parametrize("words", [("bury",), ("retry",), ("show",)])
def test_what_makes_no_sense_is_explained(words: tuple[str, ...]):
    ran = Ran("dead", *words, daemon=Daemon())
    assert ran.code == 2
    assert ran.calls == []


def test_a_reply_is_passed_on_word_for_word():
    ran = Ran("reply", "t7", "1", "K7F39M2XQ4", daemon=Daemon(task__control=CONTROLLED))
    assert ran.calls == [("task.control", {"task": "t7", "action": "reply", "text": "1 K7F39M2XQ4"})]
    assert Ran("reply", "t7", daemon=Daemon()).code == 2


def test_the_status_shows_what_waits_for_whom():
    queues = [
        shapes_outbox.OutboxView("chat", 2, 1, 3, NOW_MS - 1000, 4, NOW_MS + 60_000, PROBLEM),
        shapes_outbox.OutboxView("hook", 1, 0, 0, NOW_MS, 0, None, None),
        shapes_outbox.OutboxView("quiet", 0, 0, 0, None, 0, None, None),
    ]
    page = shapes.Page([], None)
    ran = Ran("status", daemon=Daemon(status=status(outbox=queues), task__list=page), environ={"COLUMNS": "200"})
    line = next(line for line in ran.out.splitlines() if line.startswith("outbox"))
    assert "chat: 2 wait, next try in 60 s, 1 given up (omnictl dead), 3 fell out." in line.replace("1 min", "60 s")
    assert PROBLEM.what in line
    assert "hook: 1 wait" in ran.out
    assert "quiet" not in ran.out
