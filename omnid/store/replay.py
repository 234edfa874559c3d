"""The log read again: as operations for people, as a database rebuilt from nothing, and compared with the tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec

from omnid.errors import Rejected
from omnid.model import Change
from omnid.store.interface import COLLECTIONS, Reader, Row
from omnid.store.log import column_values, decode_body, decode_heads, encode_heads
from omnid.store.migrate import migrate
from omnid.store.queries import columns_of, insert_sql, queries, table_page_sql, update_sql
from omnid.store.sqlite import SqliteReader, mapped

PAGE_MAX = 1_000
DIFFERENCES_MAX = 20


def change_of(row: Row) -> Change:
    """Makes an entry of a row of `changes_page`."""
    body = decode_body(row[7])
    fields: dict[str, Any] = {name: msgspec.json.decode(raw) for name, raw in body.f.items()}
    return Change(*row[:7], fields, body.p)


class Replica:
    """A database in memory (or a file) that a log is applied to, entry by entry."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or Path(":memory:")
        self.connection = apsw.Connection(str(self._path))
        self.connection.pragma("journal_mode", "off")
        self.connection.pragma("synchronous", "off")
        migrate(self.connection, self._path)
        self.reader = SqliteReader(self.connection)
        self.seq = 0
        self.hlc = 0

    def apply(self, rows: list[Row]) -> None:
        """Applies rows of `changes_page`; raises Rejected(`replay_mismatch`) where an entry can't follow."""
        try:
            with self.connection:
                for row in rows:
                    self._apply(row)
        except (apsw.Error, msgspec.DecodeError) as error:
            raise Rejected("replay_mismatch", detail=f"after entry {self.seq}: {error}") from error

    def _apply(self, row: Row) -> None:
        seq, hlc, _, _, name, id, kind, text = row
        collection = COLLECTIONS.get(name)
        if collection is None:
            raise Rejected("replay_mismatch", detail=f"entry {seq} is of an unknown collection {name}")
        body = decode_body(text)
        execute = self.connection.execute
        if kind == "create":
            columns = column_values(collection, body)
            execute(insert_sql(name, ("ord", "id", *columns)), (hlc, id, *columns.values()))
        elif kind == "delete":
            execute(queries()[f"delete_{name}"], (id,))
        else:
            found = self.reader.one(f"heads_{name}", id)
            if found is None:
                raise Rejected("replay_mismatch", detail=f"entry {seq} edits {name} {id}, which isn't there")
            self._edit(row, found)
        self.seq, self.hlc = seq, hlc

    def _edit(self, row: Row, found: Row) -> None:
        seq, hlc, _, _, name, id, _, text = row
        collection = COLLECTIONS[name]
        body = decode_body(text)
        ord, heads = found[0], decode_heads(found[1])
        for field, seen in body.p.items():
            if heads.get(field, ord) != seen:
                raise Rejected("replay_mismatch", detail=f"entry {seq} edits {name} {id}.{field} of another state")
        columns = column_values(collection, body)
        after = {**heads, **dict.fromkeys(body.p, hlc)}
        values = (*columns.values(), encode_heads(after), ord)
        self.connection.execute(update_sql(name, (*columns, "heads")), values)

    def close(self) -> None:
        """Lets go of the database."""
        self.connection.close()


def pages(reader: Reader, until: int) -> Iterator[list[Row]]:
    """Gives the log up to a seq, page by page, on one connection."""
    after = 0
    while rows := reader.all("changes_page", after, until, PAGE_MAX):
        after = rows[-1][0]
        yield rows


class Difference(NamedTuple):
    """A row that the log and the tables don't agree on."""

    collection: str
    id: str
    detail: str


def compare(reader: SqliteReader, replica: Replica) -> list[Difference]:
    """Compares the tables with a replica of the whole log, both as of the reader's transaction; at most 20 rows."""
    found: list[Difference] = []
    for name in COLLECTIONS:
        columns = columns_of(COLLECTIONS[name])
        for mine, theirs in _paired(reader, replica, name):
            if mine == theirs:
                continue
            row = mine or theirs
            if row is None:
                continue
            if mine is None or theirs is None:
                detail = "is in the table only" if theirs is None else "is in the log only"
            else:
                wrong = [c for c, a, b in zip(columns, mine, theirs, strict=True) if a != b]
                detail = f"differs in {', '.join(wrong)}"
            found.append(Difference(name, row[1], detail))
            if len(found) == DIFFERENCES_MAX:
                return found
    return found


def _paired(reader: SqliteReader, replica: Replica, name: str) -> Iterator[tuple[Row | None, Row | None]]:
    """Walks both tables in the order of `ord`; what one of them lacks comes with None."""
    mine, theirs = _walk(reader.connection, name), _walk(replica.connection, name)
    a, b = next(mine, None), next(theirs, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] < b[0]):
            yield a, None
            a = next(mine, None)
        elif a is None or b[0] < a[0]:
            yield None, b
            b = next(theirs, None)
        else:
            yield a, b
            a, b = next(mine, None), next(theirs, None)


def _walk(connection: apsw.Connection, name: str) -> Iterator[Row]:
    after = 0
    sql = table_page_sql(name)
    while rows := list(connection.execute(sql, (after, PAGE_MAX))):
        yield from rows
        after = rows[-1][0]


def quick_check(connection: apsw.Connection, path: Path) -> list[str]:
    """Lets SQLite look for damage; gives what it found."""
    try:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(20)")]
    except apsw.Error as error:
        raise mapped(error, path) from error
    return [] if found == ["ok"] else found
