"""Notices: in both languages, grouped, not too often, not at night, and away and back as one."""

import string
from datetime import datetime, timedelta
from functools import partial
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.flow.answers import Announcer
from omnid.flow.drain import Carrier
from omnid.flow.notify import HOUR_MS, LINES_MAX, QUEUE, Kind, Notices, compose, tell
from omnid.flow.texts import WORDS, say, texts
from omnid.model import Delivery, Problem
from omnid.settings import Notify
from omnid.store import outbox
from tests.fakes.clock import FakeClock
from tests.fakes.world import AGENT, World
from tests.unit.test_drain import DOWN, Place, carry_all, left, wait_out

pytestmark = pytest.mark.anyio

LANGUAGES = get_args(Notify.__annotations__["language"])
ZONE = ZoneInfo("Asia/Taipei")
NOW_MS = 1_800_000_000_000
FIELDS: dict[Kind, dict[str, str]] = {
    "limit": {"until_ms": str(NOW_MS + HOUR_MS)},
    "limit_over": {},
    "needs_you": {"why": "approval", "task": "t7", "title": "make", "executor": "command"},
    "budget": {"percent": "80", "limit": "$5.00", "until_ms": str(NOW_MS + HOUR_MS)},
    "failed": {"task": "t7", "title": "make", "problem": "It broke."},
    "mode": {"mode": "brainstem"},
    "digest": {"text": "7 done"},
}


def notice(kind: Kind, at_ms: int = NOW_MS, subject: str = "claude", **fields: str) -> Delivery:
    body = {"event": kind, **FIELDS[kind], **fields}
    return Delivery(at_ms, f"{at_ms}-{kind}", f"{QUEUE}desktop", "notice", subject, body, at_ms)


def in_words(*batch: Delivery, language: str = "en") -> list[str]:
    return compose(batch, language, ZONE).splitlines()


def fields_of(text: str) -> list[str]:
    return sorted(field for _, field, _, _ in string.Formatter().parse(text) if field)


def test_every_language_has_every_text_with_the_same_fields() -> None:
    english = {key: fields_of(text) for key, text in texts("en").items()}
    for language in LANGUAGES:
        assert {key: fields_of(text) for key, text in texts(language).items()} == english
        assert all(text.strip() for text in texts(language).values())


def test_the_words_of_the_user_for_the_cloud_are_used() -> None:
    assert in_words(notice("mode"), language="zh-TW") == ["雲端離線，任務已掛起"]
    assert in_words(notice("mode", mode="normal"), language="zh-TW") == ["雲端已恢復，任務恢復中"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_has_words_that_hold_what_it_tells(language: str, kind: Kind) -> None:
    assert kind in texts(language)
    (line,) = in_words(notice(kind), language=language)
    assert "?" not in line
    if kind == "limit":
        assert "16:00 " not in line
        assert "17:00" in line, "local time, because it is today there"
    for value in FIELDS[kind].values():
        assert value in line or value in ("approval", "brainstem") or value.isdigit()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_choices_of_every_language_are_understood(language: str) -> None:
    for number in (1, 2, 3):
        digit, word = say(language, f"choice.{number}").split()
        assert WORDS[digit] == WORDS[word] == number


def test_a_field_that_nobody_gave_is_a_question_mark() -> None:
    assert say("en", "budget") == "?: ?% of ? is used."
    assert say("en", "mode.unheard-of", mode="x") == "omnid is in the mode x."


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("kind", "fields", "holds"),
    [
        ("limit", {"until_ms": "", "said": "You've hit your limit."}, "You've hit your limit"),
        ("needs_you", {"why": "uncertain"}, "t7"),
        ("budget", {"percent": "100"}, "17:00"),
        ("mode", {"mode": "degraded"}, ""),
        ("mode", {"mode": "normal"}, ""),
        ("mode", {"mode": "new"}, "new"),
    ],
)
def test_variants_tell_what_is_known(language: str, kind: Kind, fields: dict[str, str], holds: str) -> None:
    (line,) = in_words(notice(kind, **fields), language=language)
    assert holds in line
    assert "?" not in line
    assert ".)" not in line


@pytest.mark.parametrize("fields", [{"said": "Not logged in."}, {"what": "It costs too much.", "do": "Raise it."}, {}])
def test_a_need_is_told_with_whatever_its_finder_knows(fields: dict[str, str]) -> None:
    bare = Delivery(1, "x", "notice/desktop", "notice", "claude", {"event": "needs_you", **fields}, NOW_MS)
    for language in LANGUAGES:
        (line,) = in_words(bare, language=language)
        assert "?" not in line
        assert all(value.rstrip(".") in line for value in fields.values())


def test_the_local_model_is_told_of_beside_the_outage() -> None:
    batch = [
        notice("mode", NOW_MS, mode="brainstem"),
        notice("mode", NOW_MS + 1, mode="asleep", said="it needs more memory"),
        notice("mode", NOW_MS + HOUR_MS, mode="normal"),
        notice("mode", NOW_MS + HOUR_MS + 1, mode="released", size="4.4"),
    ]
    assert in_words(*batch) == [
        "The local model stays asleep: it needs more memory.",
        "The cloud was offline for 1 h; it is back, and tasks go on.",
        "The local model was killed; 4.4 GiB of memory are free again.",
    ]


def test_a_time_of_another_day_says_which() -> None:
    (line,) = in_words(notice("limit", until_ms=str(NOW_MS + 24 * HOUR_MS)))
    assert "until 2027-01-16 16:00" in line


def test_what_is_over_before_it_was_told_is_one_line() -> None:
    batch = [
        notice("limit", NOW_MS),
        notice("mode", NOW_MS + 1, mode="degraded"),
        notice("limit", NOW_MS + 2, "codex"),
        notice("mode", NOW_MS + 3, mode="brainstem"),
        notice("limit_over", NOW_MS + 2 * HOUR_MS),
        notice("mode", NOW_MS + 3 * HOUR_MS, mode="normal"),
    ]
    assert in_words(*batch) == [
        "codex has reached its limit; its tasks wait until 17:00.",
        "claude had reached its limit for 2 h; its tasks go on.",
        "The cloud was offline for 3 h; it is back, and tasks go on.",
    ]
    # An end whose begin was told is told too.
    assert in_words(notice("limit_over")) == ["claude takes tasks again."]


@given(st.lists(st.sampled_from(["limit", "limit_over", "mode", "normal", "failed"]), min_size=1, max_size=40))
def test_however_many_there_are_a_message_stays_short_and_counts_the_rest(kinds: list[Any]) -> None:
    batch = [
        notice("mode", NOW_MS + n, mode="normal") if kind == "normal" else notice(kind, NOW_MS + n)
        for n, kind in enumerate(kinds)
    ]
    lines = in_words(*batch)
    assert 1 <= len(lines) <= LINES_MAX
    failed = kinds.count("failed")
    if failed == len(kinds) > LINES_MAX:
        assert lines[-1].startswith(f"... and {failed - LINES_MAX + 1} more")


async def told(world: World, *kinds: Kind) -> None:
    for kind in kinds:
        await world.write(lambda tx: tell(tx, world.context.config, kind, "claude", **FIELDS[kind]))  # noqa: B023


def carrier(world: World, place: Place) -> Carrier:
    notices = Notices(place, lambda: world.context.config, world.clock)
    return Carrier(world.context, lambda _: notices, f"{QUEUE}desktop")


async def test_a_notice_goes_to_each_place(world: World) -> None:
    world.set("notify", to=("desktop", "phone"))
    await told(world, "failed")
    assert await world.store.read(outbox.destinations) == ["notice/desktop", "notice/phone"]
    world.set("notify", to=())
    await told(world, "failed")
    assert await world.rows("SELECT count(*) FROM outbox") == [(2,)]


async def test_what_comes_together_is_sent_as_one(world: World, clock: FakeClock) -> None:
    place = Place()
    one = carrier(world, place)
    await told(world, "failed")
    await carry_all(one)
    clock.now_ms += 9_000
    await told(world, "budget")
    await carry_all(one)
    assert place.got == []
    await wait_out(world)
    await carry_all(one)
    assert [text.count("\n") for text in place.texts] == [1]
    assert clock.now_ms == NOW_MS + 10_000


async def test_a_clock_that_was_set_back_keeps_no_notice_waiting(world: World, clock: FakeClock) -> None:
    place = Place()
    one = carrier(world, place)
    await told(world, "needs_you")
    await carry_all(one)
    clock.now_ms -= 6 * HOUR_MS
    await carry_all(one)
    assert len(place.got) == 1


async def test_no_more_go_in_an_hour_than_wished_and_the_rest_is_counted(world: World, clock: FakeClock) -> None:
    world.set("notify", per_hour_max=3, group_s=0)
    place = Place()
    one = carrier(world, place)
    for _ in range(30):
        await told(world, "failed")
        await carry_all(one)
        clock.now_ms += 60_000
    assert len(place.got) == 3
    await wait_out(world)
    await carry_all(one)
    assert clock.now_ms == NOW_MS + HOUR_MS
    assert len(place.got) == 4
    assert place.texts[-1].splitlines()[-1].startswith("... and 18 more")


async def test_nothing_is_sent_at_night_and_all_of_it_in_the_morning(world: World, clock: FakeClock) -> None:
    world.set("daemon", zone="Asia/Taipei")
    world.set("notify", quiet="22:00-07:00")
    place = Place()
    one = carrier(world, place)
    night = datetime(2027, 1, 15, 23, 30, tzinfo=ZONE)
    clock.now_ms = round(night.timestamp() * 1000)
    for kind in ("mode", "needs_you"):
        await told(world, kind)
        await carry_all(one)
    assert place.got == []
    await wait_out(world)
    assert datetime.fromtimestamp(clock.now_ms / 1000, ZONE) == night + timedelta(hours=7, minutes=30)
    await carry_all(one)
    assert place.texts[0].splitlines()[0] == "The cloud is offline; its tasks are parked."


async def test_notices_are_kept_until_they_are_delivered_and_a_repeat_has_their_id(
    world: World, clock: FakeClock
) -> None:
    world.set("notify", group_s=0)
    place = Place()
    place.down = DOWN
    one = carrier(world, place)
    await told(world, "mode")
    await carry_all(one)
    place.down, place.loses = None, 1
    for _ in range(2):
        await wait_out(world)
        await carry_all(one)
    assert len(place.got) == 2
    assert place.got[0] == place.got[1]
    assert await left(world, f"{QUEUE}desktop") == []


async def test_what_grew_since_it_was_sent_has_another_id(world: World) -> None:
    world.set("notify", group_s=0)
    place = Place()
    place.loses = 1
    one = carrier(world, place)
    await told(world, "failed")
    await carry_all(one)
    await told(world, "budget")
    await wait_out(world)
    await carry_all(one)
    assert len({id for id, _ in place.got}) == 2, "or the receiver would drop what came with it"


PROBLEM = Problem.make("exit_code", code=1, detail="x", task="t1")


async def announced(world: World) -> list[dict[str, Any]]:
    rows = await world.store.read(lambda reader: outbox.peek(reader, f"{QUEUE}desktop", 100))
    return [row.body for row in rows]


async def test_people_hear_of_failures_and_of_what_needs_them(world: World) -> None:
    world.store.set_follow(Announcer(world.context))
    await world.add("deploy", caller=AGENT)
    for outcome in ("failure", "lost", "success"):
        await world.add("make", attempts_max=1)
        (command,) = await world.claim()
        await world.finish(command, outcome, problem=PROBLEM)
    found = await announced(world)
    assert [(one["event"], one.get("why"), one["task"]) for one in found] == [
        ("needs_you", "approval", "claude/t1"),
        ("failed", None, "t1"),
        ("needs_you", "uncertain", "t2"),
    ]


@pytest.mark.parametrize("action", ["deny", "fail"])
async def test_what_a_person_decided_is_no_news_to_them(world: World, action: str) -> None:
    if action == "deny":
        await world.add("deploy", caller=AGENT)
    else:
        await world.add("make")
        (command,) = await world.claim()
        await world.finish(command, "lost", problem=PROBLEM)
    world.store.set_follow(Announcer(world.context))
    await world.control("claude/t1" if action == "deny" else "t1", action)
    assert await world.rows("SELECT state FROM task") == [("failed",)]
    assert await announced(world) == []


async def test_a_late_failure_of_an_uncertain_task_is_news(world: World) -> None:
    await world.add("make", attempts_max=1)
    (command,) = await world.claim()
    await world.finish(command, "lost", problem=Problem.make("uncertain", executor="x", detail="y", task="t1"))
    world.store.set_follow(Announcer(world.context))
    await world.finish(command, "failure", problem=PROBLEM)
    assert [one["event"] for one in await announced(world)] == ["failed"]


async def test_notices_fall_out_of_a_full_queue_as_all_do(world: World) -> None:
    world.set("outbox", rows_max=3)
    for _ in range(5):
        await told(world, "failed")
    (found,) = await world.store.read(partial(outbox.waiting))
    assert (found.rows, found.dropped) == (3, 2)
