"""Money on the command line: spend, budget, and its place in status and show."""

from omnid.api import shapes_money
from tests.fakes.ctl_world import AMOUNTS, CONTROLLED, NOW_MS, SPENT, Daemon, Ran, attempt, status, view

NOTHING = shapes_money.Amounts(0.0, 0.0, 0.0, 0)


def test_spend_is_a_table_with_the_caps_below():
    ran = Ran("spend", daemon=Daemon(spend=SPENT))
    assert ran.code == 0
    head, row, total, empty, caps, cap = ran.out.splitlines()
    assert head.split() == ["EXECUTOR", "SPENT", "RESERVED", "UNKNOWN", "CALLS"]
    assert row.split() == ["claude", "$1.84", "$2.00", "$0.00", "7"]
    assert total.split() == ["total", "$1.84", "$2.00", "$0.00", "7"]
    assert (empty, caps.split()[:2]) == ("", ["CAP", "HOLDS"])
    for text in ("budget.day_usd", "everything", "$1.84, $2.00 reserved", "$5.00", "in 2 h"):
        assert text in cap
    assert ran.calls == [("spend", {"by": "executor"})]


def test_spend_by_label_since_a_time_says_how_it_adds_up():
    ran = Ran("spend", "--by", "label", "--since", "2d", daemon=Daemon(spend=SPENT))
    assert ran.calls == [("spend", {"by": "label", "since_ms": NOW_MS - 2 * 86_400_000})]
    assert "A call counts under each of its labels" in ran.err


def test_spend_without_any_and_in_words_that_it_does_not_know():
    nothing = shapes_money.Spent("executor", NOW_MS, "UTC", NOTHING, [], [])
    assert Ran("spend", daemon=Daemon(spend=nothing)).out.startswith("Nothing was spent since ")
    assert Ran("spend", "--by", "moon").code == 2


def test_budget_raises_what_a_task_may_cost():
    ran = Ran("budget", "t7", "$2.5", daemon=Daemon(task__control=CONTROLLED))
    assert ran.calls == [("task.control", {"task": "t7", "action": "budget", "cost_max_usd": 2.5})]
    for amount in ("much", "-1", "nan", "1e400"):
        ran = Ran("budget", "t7", amount)
        assert (ran.code, ran.err.splitlines()[0]) == (2, f"omnictl: USD takes an amount like 1.50, not {amount!r}.")


def test_status_shows_today_where_there_is_a_cap_or_a_cost():
    today = shapes_money.Today(AMOUNTS, 5.0, NOW_MS + 1)
    assert (
        "money      $1.84 of $5.00 today, $2.00 reserved"
        in Ran("status", daemon=Daemon(status=status(today=today))).out
    )
    free = shapes_money.Today(AMOUNTS, None, NOW_MS + 1)
    assert "$1.84 today" in Ran("status", daemon=Daemon(status=status(today=free))).out
    assert "money" not in Ran("status", daemon=Daemon(status=status())).out


def test_show_says_what_is_unknown():
    money = shapes_money.TaskMoney(shapes_money.Amounts(1.0, 0.0, 2.0, 2), 5.0)
    attempts = [attempt(cost_usd=1.0, reserved_usd=2.0), attempt(number=2, reserved_usd=2.0)]
    out = Ran("show", "t7", daemon=Daemon(task__get=view(money=money, attempts=attempts, attempts_total=2))).out
    assert "$1.00, $2.00 unknown, of at most $5.00" in out
    assert "$2.00 reserved, its cost is unknown" in " ".join(out.split())
