"""``omnictl schedule`` and ``omnictl run``."""

import pytest
from msgspec.structs import replace

from omnid.api import shapes_schedules as shapes
from omnid.model import Schedule, Submitted
from tests.fakes.ctl_world import NOW_MS, PROBLEM, WHY, Daemon, Ran

BACKUP = shapes.ScheduleView(
    name="backup",
    origin="config",
    enabled=True,
    schedule=Schedule(cron="0 3 * * *", zone="Asia/Taipei", on=("start",)),
    title="restic backup {params.path}",
    task={"argv": ["restic", "backup", "{params.path}"]},
    params={"path": "/home"},
    next_at_ms=NOW_MS + 3_600_000,
    last_at_ms=NOW_MS - 60_000,
    last_task="config/t7",
    last_state="completed",
    runs=7,
    skipped=2,
    problem=None,
)
POLL = replace(
    BACKUP, name="poll", schedule=Schedule(every_s=300, times_max=3), params={}, next_at_ms=None, last_at_ms=None
)
SUBMITTED = Submitted("id", "t8", "idle", True)


def test_schedules_are_listed_page_by_page():
    off = replace(POLL, name="off", enabled=False, problem=PROBLEM, schedule=Schedule())
    pages = [shapes.SchedulePage([BACKUP, POLL], "poll"), shapes.SchedulePage([off], None)]
    ran = Ran("schedule", "--all", daemon=Daemon(schedule__list=pages), environ={"COLUMNS": "200"})
    assert [params for _, params in ran.calls] == [{"limit": 500}, {"limit": 500, "after": "poll"}]
    backup, poll, _, disabled = ran.out.splitlines()[1:]
    for part in ("backup", "0 3 * * * Asia/Taipei, on start", "in 1 h", "1 min ago, completed", "7"):
        assert part in backup
    assert "every 5 min, 3 times" in poll
    for part in ("by hand", "disabled", "not submitted"):
        assert part in disabled
    ran = Ran("schedule", "list", daemon=Daemon(schedule__list=shapes.SchedulePage([], None)))
    assert (ran.code, ran.out) == (0, "")
    assert "omnictl schedule add" in ran.err
    ran = Ran("schedule", "list", daemon=Daemon(schedule__list=pages[0]))
    assert "the same with --cursor poll, or with --all" in ran.err
    ran = Ran("schedule", "list", "--json", daemon=Daemon(schedule__list=shapes.SchedulePage([BACKUP], None)))
    assert ran.json["result"]["schedules"][0]["name"] == "backup"


def test_one_is_added_with_its_times_and_its_task():
    words = [
        "--cron",
        "0 3 * * *",
        "--zone",
        "Asia/Taipei",
        "--on",
        "start",
        "--on",
        "cloud.up",
        "--missed",
        "run_all",
        "--missed-max",
        "3",
    ]
    ran = Ran(
        *("schedule", "add", "backup", *words, "--overlap", "kill", "--param", "path=/a=b", "--lane", "disk"),
        *("--", "restic", "backup", "{params.path}"),
        daemon=Daemon(schedule__add=BACKUP),
    )
    ((_, params),) = ran.calls
    assert params["name"] == "backup"
    assert params["schedule"] == {
        "cron": "0 3 * * *",
        "zone": "Asia/Taipei",
        "on": ["start", "cloud.up"],
        "missed": "run_all",
        "missed_max": 3,
        "overlap": "kill",
    }
    assert params["params"] == {"path": "/a=b"}
    assert params["task"]["argv"] == ["restic", "backup", "{params.path}"]
    assert params["task"]["lane"] == "disk"
    assert "in 1 h (" in ran.out
    ran = Ran(
        "schedule",
        "add",
        "poll",
        "--every",
        "5m",
        "--times",
        "3",
        "--json",
        "--",
        "poll",
        daemon=Daemon(schedule__add=POLL),
    )
    assert ran.calls[0][1]["schedule"] == {"every_s": 300.0, "times_max": 3}
    assert ran.json["result"]["name"] == "poll"


def test_one_that_runs_once_is_added_and_shown():
    once = replace(POLL, name="once", schedule=Schedule(at="2026-12-01T09:00:00", zone="Asia/Taipei"))
    argv = ("schedule", "add", "once", "--at", "2026-12-01T09:00", "--zone", "Asia/Taipei", "--", "true")
    ran = Ran(*argv, daemon=Daemon(schedule__add=once))
    assert ran.calls[0][1]["schedule"] == {"at": "2026-12-01T09:00:00", "zone": "Asia/Taipei"}
    assert "once, at 2026-12-01T09:00:00 Asia/Taipei" in ran.out


@pytest.mark.parametrize(
    ("action", "method", "params"),
    [
        ("show", "schedule.show", {}),
        ("enable", "schedule.switch", {"enabled": True}),
        ("disable", "schedule.switch", {"enabled": False}),
        ("rm", "schedule.remove", {}),
    ],
)
def test_they_are_shown_switched_and_removed(action: str, method: str, params: dict[str, object]):
    daemon = Daemon(**{method.replace(".", "__"): replace(BACKUP, problem=PROBLEM)})
    ran = Ran("schedule", action, "backup", "poll", daemon=daemon)
    assert ran.calls == [(method, {"name": name, **params}) for name in ("backup", "poll")]
    assert ("its tasks stay" in ran.out) == (action == "rm")
    assert (PROBLEM.what in ran.out) == (action != "rm")
    ran = Ran("schedule", action, "backup", "--json", daemon=daemon)
    assert ran.json["result"]["schedules"][0]["runs"] == 7


@pytest.mark.parametrize("words", [("run", "backup"), ("schedule", "run", "backup")])
def test_one_is_run_by_hand(words: tuple[str, ...]):
    daemon = Daemon(schedule__run=SUBMITTED, task__why=WHY)
    ran = Ran(*words, "--param", "path=/srv", daemon=daemon)
    assert ran.calls[0] == ("schedule.run", {"name": "backup", "params": {"path": "/srv"}})
    assert ran.out == "t8\n"
    assert Ran(*words, "--json", daemon=daemon).json["result"]["name"] == "t8"


@pytest.mark.parametrize(
    "words",
    [
        ("schedule", "mend"),
        ("schedule", "add"),
        ("schedule", "add", "a", "b", "--", "x"),
        ("schedule", "add", "a"),
        ("schedule", "add", "a", "--every", "soon", "--", "x"),
        ("schedule", "add", "a", "--missed", "never", "--", "x"),
        ("schedule", "list", "a"),
        ("run",),
        ("run", "backup", "--param", "path"),
    ],
)
def test_what_makes_no_sense_is_explained(words: tuple[str, ...]):
    ran = Ran(*words, daemon=Daemon())
    assert ran.code == 2
    assert ran.calls == []
    assert ran.err


@pytest.mark.parametrize("option", ["--cron", "--zone"])
def test_an_empty_value_is_no_schedule(option: str) -> None:
    ran = Ran("schedule", "add", "backup", option, "", "--", "true")
    assert ran.code == 2
    assert f"{option} takes a value" in ran.err
