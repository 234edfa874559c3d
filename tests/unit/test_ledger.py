"""The ledger of a runner: what is known is never begun again, and what is owed stays until it is confirmed."""

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import msgspec
import pytest

from omnid.log import Log
from omnid.model import Command, Result, Work
from omnid.store import ledger, outbox
from omnid.store.database import SqliteStore, StoreSettings
from omnid.store.ledger import Begun, Ledger, Open
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000


class Book:
    """A ledger on a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.logged = StringIO()
        self.open()

    def open(self) -> None:
        self.store = SqliteStore(self.path, self.clock, StoreSettings(inline=True))
        self.ledger = Ledger(self.store, Log(self.clock, str, stream=self.logged).logger())

    async def owed(self, daemon: str) -> list[str]:
        rows = await self.store.read(lambda reader: outbox.peek(reader, daemon, 100))
        return [str(row.subject) for row in rows]

    async def confirm(self, daemon: str) -> None:
        rows = await self.store.read(lambda reader: outbox.peek(reader, daemon, 100))
        await self.store.write(lambda tx: outbox.confirm(tx, [row.id for row in rows]))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path / "runner.db")
    yield made
    made.store.close()


def begun(number: int, daemon: str = "home") -> Begun:
    command = Command(
        f"a{number}", f"i{number}", 1, f"t{number}", "command", Work(argv=("true",)), 1.0, idempotent=True
    )
    return Begun(daemon, command)


def result(number: int) -> Result:
    return Result(f"a{number}", f"i{number}", 1, "success", output="x" * 100_000, value={"n": [1, None]})


async def left(book: Book) -> list[Begun]:
    return [one.begun for one in await book.ledger.open()]


async def test_what_is_known_is_not_begun_again_not_even_after_a_restart(book: Book) -> None:
    assert await book.ledger.begin([begun(1), begun(2), begun(1)]) == [begun(1), begun(2)]
    book.store.close()
    book.open()
    assert await book.ledger.begin([begun(2), begun(3), begun(1)]) == [begun(3)]
    assert await left(book) == [begun(1), begun(2), begun(3)]


async def test_a_result_ends_its_attempt_and_is_owed_to_whoever_sent_it(book: Book) -> None:
    await book.ledger.begin([begun(1), begun(2, "away")])
    assert await book.ledger.settle(result(1))
    assert await book.ledger.settle(result(2))
    assert not await book.ledger.settle(result(1))
    assert not await book.ledger.settle(result(9))
    assert await book.ledger.open() == []
    assert (await book.owed("home"), await book.owed("away")) == (["a1"], ["a2"])
    assert await book.ledger.owed() == 2
    rows = await book.store.read(lambda reader: outbox.peek(reader, "home", 1))
    assert msgspec.convert(rows[0].body, Result) == result(1)
    await book.confirm("home")
    assert await book.ledger.owed() == 1
    assert await book.ledger.begin([begun(1)]) == []


async def test_what_is_owed_to_one_daemon_beyond_all_measure_makes_room_and_is_named(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "OWED_MAX", 2)
    await book.ledger.begin([*map(begun, range(1, 4)), begun(9, "away")])
    for number in (1, 2, 9):
        assert await book.ledger.settle(result(number))
    assert book.logged.getvalue() == ""
    assert await book.ledger.settle(result(3))
    assert await book.ledger.withdraw(begun(4), result(4))
    assert (await book.owed("home"), await book.owed("away")) == (["a3", "a4"], ["a9"])
    lines = [json.loads(line) for line in book.logged.getvalue().splitlines()]
    assert [(line["event"], line["daemon"], line["attempts"]) for line in lines] == [
        ("results_dropped", "home", ["a1"]),
        ("results_dropped", "home", ["a2"]),
    ]


async def test_a_cancel_of_what_has_begun_is_kept_and_what_has_not_never_begins(book: Book) -> None:
    await book.ledger.begin([begun(1), begun(2)])
    for _ in range(2):
        await book.ledger.cancel("a2")
    await book.ledger.cancel("a9")
    assert not await book.ledger.withdraw(begun(1), result(1))
    assert await book.ledger.withdraw(begun(3), result(3))
    book.store.close()
    book.open()
    assert await book.ledger.open() == [Open(begun(1), False), Open(begun(2), True)]
    assert await book.owed("home") == ["a3"]
    assert await book.ledger.begin([begun(3)]) == []
    await book.ledger.settle(result(2))
    await book.ledger.cancel("a2")
    await book.confirm("home")
    assert sorted(await book.ledger.forget(0, 1)) == ["a2"]
    assert await book.store.read(lambda reader: reader.one("count_note")) == (2,)


async def test_what_is_to_go_back_is_known_as_such_after_a_restart(book: Book) -> None:
    assert await book.ledger.begin([begun(1)], back=True) == [begun(1)]
    assert await book.ledger.begin([begun(1), begun(2)]) == [begun(2)]
    book.store.close()
    book.open()
    assert await book.ledger.open() == [Open(begun(1), False, True), Open(begun(2), False)]


async def test_what_has_come_again_is_not_forgotten(book: Book) -> None:
    await book.ledger.begin([begun(1), begun(2)])
    for number in (1, 2):
        await book.ledger.settle(result(number))
    await book.confirm("home")
    assert await book.ledger.forget(0, 0, {"a1"}) == ["a2"]
    assert await book.ledger.begin([begun(1), begun(2)]) == [begun(2)]


async def test_what_ended_long_ago_is_forgotten_but_not_what_is_open_or_owed(book: Book) -> None:
    await book.ledger.begin([begun(1), begun(2), begun(3, "away")])
    for number in (1, 3):
        await book.ledger.settle(result(number))
    await book.confirm("home")
    before_ms = book.clock.wall_ms() + DAY_MS
    book.clock.now_ms += 2 * DAY_MS
    await book.ledger.begin([begun(4)])
    await book.ledger.settle(result(4))
    await book.confirm("home")
    assert await book.ledger.forget(before_ms, 100) == ["a1"]
    assert await book.ledger.forget(before_ms, 100) == []
    assert await left(book) == [begun(2)]
    assert await book.ledger.begin([begun(4), begun(1)]) == [begun(1)]


async def test_beyond_their_number_the_oldest_are_forgotten(book: Book) -> None:
    for number in range(5):
        await book.ledger.begin([begun(number)])
        await book.ledger.settle(result(number))
    await book.confirm("home")
    assert await book.ledger.forget(0, 3) == ["a0", "a1"]
    rows = await book.store.read(lambda reader: (reader.one("count_note"), reader.one("count_attempt")))
    assert rows == ((3,), (3,))
