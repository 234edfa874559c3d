"""What happened while nobody looked: the facts from the journal, and the line that says them."""

import re
from zoneinfo import ZoneInfo

import pytest

from omnid.flow import digest
from omnid.flow.digest import Digest, Money, Parked
from omnid.model import Gate
from omnid.store.interface import OUTAGE
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

NIGHT = Digest(
    since_ms=0,
    until_ms=1,
    ended={"completed": 7, "failed": 0},
    parked=(Parked("rate_limit", "claude-code", 1, 1_795_500_000_000),),
    needs_you=1,
    money=Money(1.84, 5.0, 0.0),
    limits=2,
    limits_s=3 * 3600 + 600,
)
BERLIN = ZoneInfo("Europe/Berlin")


def test_the_line_says_what_a_morning_needs() -> None:
    assert digest.text(NIGHT, BERLIN) == (
        "7 done, 1 parked until 07:00, 1 needs you; $1.84 of $5.00; 2 limits waited out (3 h 10 min). "
        "Reply: 1 approve, 2 again, 3 drop"
    )


def test_the_line_in_chinese() -> None:
    assert digest.text(NIGHT, BERLIN, "zh-TW") == (
        "完成 7 件，掛起 1 件（至 07:00），1 件需要您處理；花費 $1.84／上限 $5.00；等過 2 次額度限制（3 h 10 min）。 "
        "回覆：1 核准、2 重試、3 放棄"
    )


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"ended": {}, "parked": (), "needs_you": 0, "money": None, "limits": 0}, "nothing happened."),
        (
            {"parked": (), "needs_you": 0, "money": Money(0.5, None, 3.0), "limits": 1},
            "7 done; $0.50 and up to $3.00 unknown; 1 limit waited",
        ),
        (
            {"ended": {"failed": 2, "cancelled": 1}, "needs_you": 3},
            "2 failed, 1 cancelled, 1 parked until 07:00, 3 need",
        ),
        ({"parked": (Parked("paused", "x", 4, None),), "needs_you": 0}, "7 done, 4 parked; $1.84"),
    ],
)
def test_the_line_says_nothing_of_what_was_not(facts: dict[str, object], line: str) -> None:
    assert digest.text(NIGHT._replace(**facts), BERLIN).startswith(line)


def test_both_languages_have_the_same_fields() -> None:
    english, chinese = digest._WORDS["en"], digest._WORDS["zh-TW"]
    for name in english._fields:
        fields = [sorted(set(re.findall(r"\{\w+\}", getattr(words, name)))) for words in (english, chinese)]
        assert fields[0] == fields[1], name


async def test_it_counts_from_the_journal(world: World, clock: FakeClock) -> None:
    await world.add("old")
    (first,) = await world.claim(1)
    await world.finish(first, "success")
    clock.now_ms += 1_000
    since_ms = clock.now_ms
    clock.now_ms += 1
    for outcome in ("success", "success", "rejected"):
        await world.add(outcome)
        (command,) = await world.claim(1)
        await world.finish(command, outcome)
    await world.add("waits")
    gate = Gate("rate_limit:command", "rate_limit", "command", clock.now_ms, clock.now_ms + 60_000)
    paused = Gate("paused:*", "paused", "*", clock.now_ms, None)
    found = await world.store.read(lambda r: digest.gather(r, since_ms, clock.now_ms, [gate, paused], 2, None))
    assert found.ended == {"completed": 2, "failed": 1}
    assert found.parked == (Parked("rate_limit", "command", 1, clock.now_ms + 60_000),)
    assert (found.needs_you, found.limits) == (2, 0)


async def test_limits_at_the_same_time_are_waited_for_once(world: World, clock: FakeClock) -> None:
    began = clock.now_ms

    def outages(tx):
        for number, (cause, start_s, end_s) in enumerate(
            [("rate_limit", 1, 61), ("login", 31, 91), ("executor", 1, 900), ("rate_limit", 100, None)]
        ):
            fields = {"cause": cause, "subject": "x", "began_at_ms": began + start_s * 1000}
            if end_s is not None:
                fields["ended_at_ms"] = began + end_s * 1000
            tx.create(OUTAGE, str(number), fields)

    await world.write(outages)
    found = await world.store.read(lambda r: digest.gather(r, began, began + 200_000, [], 0, None))
    assert (found.limits, found.limits_s) == (2, 90.0)
    assert await world.differences() == []
