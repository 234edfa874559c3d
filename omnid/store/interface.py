"""What the rest of omnid knows of the store: transactions are functions, and rows are logged as they change."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

Row = Sequence[Any]


class Collection(NamedTuple):
    """One logged table: its rows are created, edited and deleted through `Tx`, which writes the log as well."""

    name: str
    """Of the table, and in the log."""
    fields: tuple[str, ...]
    """All logged columns but `ord`, `id` and `heads`."""
    json: frozenset[str] = frozenset()
    """Fields whose value is any JSON value."""
    large: frozenset[str] = frozenset()
    """Fields that move to the table `blob` when they pass `BLOB_BYTES_MIN`; they have a column `<field>_blob`."""


BLOB_BYTES_MIN = 16 * 1024

NOTHING: Mapping[str, Any] = MappingProxyType({})


class At(NamedTuple):
    """Where a row that was read stands in the log: its `ord`, and the heads of the fields edited since."""

    ord: int
    heads: Mapping[str, int]


TASK = Collection(
    "task",
    (
        "origin",
        "number",
        "title",
        "work",
        "executor",
        "state",
        "reason",
        "wake_at_ms",
        "priority",
        "lane",
        "kind",
        "labels",
        "assignee",
        "parent",
        "key",
        "body_hash",
        "created_at_ms",
        "not_before_ms",
        "deadline_ms",
        "retry_at_ms",
        "paused",
        "approval",
        "cancel",
        "attempt",
        "failures",
        "finished_at_ms",
        "problem",
        "budget_at_ms",
        "input_hash",
    ),
    json=frozenset({"work", "labels", "problem"}),
    large=frozenset({"work"}),
)
ATTEMPT = Collection(
    "attempt",
    (
        "task_id",
        "number",
        "executor",
        "idempotent",
        "started_at_ms",
        "ended_at_ms",
        "outcome",
        "problem",
        "exit_code",
        "output",
        "output_bytes",
        "value",
        "cost_microusd",
        "route",
        "reserved_microusd",
    ),
    json=frozenset({"problem", "value", "route"}),
    large=frozenset({"output", "value"}),
)
NOTE = Collection("note", ("attempt_id", "kind", "body"), json=frozenset({"body"}))
GATE = Collection(
    "gate",
    ("cause", "subject", "closed_at_ms", "wake_at_ms", "problem", "failures"),
    json=frozenset({"problem"}),
)
PERMIT = Collection("permit", ("origin", "executor", "work", "granted", "created_at_ms"), json=frozenset({"work"}))
ANSWER = Collection("answer", ("body_hash", "result", "created_at_ms"), json=frozenset({"result"}))
ORIGIN = Collection("origin", ("number_floor",))
CALL = Collection(
    "call",
    (
        "task_id",
        "attempt_id",
        "executor",
        "channel",
        "model",
        "labels",
        "reserved_microusd",
        "spent_microusd",
        "started_at_ms",
        "settled_at_ms",
        "outcome",
    ),
    json=frozenset({"labels"}),
)
OUTAGE = Collection(
    "outage",
    ("cause", "subject", "began_at_ms", "ended_at_ms", "problem", "parked", "resumed"),
    json=frozenset({"problem"}),
)
OUTBOX = Collection(
    "outbox",
    ("destination", "kind", "subject", "body", "created_at_ms", "tries", "retry_at_ms", "dead_at_ms", "problem"),
    json=frozenset({"body", "problem"}),
)

COLLECTIONS: Mapping[str, Collection] = {
    c.name: c for c in (TASK, ATTEMPT, NOTE, GATE, PERMIT, ANSWER, ORIGIN, CALL, OUTAGE, OUTBOX)
}


def tally_key(state: str, reason: str | None) -> str:
    """Gives what a task is counted under: its state, and for a waiting one its reason (``waiting:backoff``)."""
    return f"{state}:{reason}" if state == "waiting" else state


class Reader(Protocol):
    """Named queries (see queries.sql) against one consistent state."""

    def one(self, query: str, *args: Any) -> Row | None:
        """Gives the first row, or None."""
        ...

    def all(self, query: str, *args: Any) -> list[Row]:
        """Gives all rows; the query itself bounds them."""
        ...


class Tables(Reader, Protocol):
    """Named queries and statements on the derived tables."""

    def run(self, query: str, *args: Any) -> None:
        """Runs a named statement on derived tables; logged rows change through the functions of `Tx` only."""
        ...


class Tx(Tables, Protocol):
    """A transaction. It is valid inside the function that it is handed to, and nowhere else."""

    now_ms: int
    """The wall time of the transaction."""
    memory: dict[str, Any]
    """What is worth knowing from one transaction to the next; empty again whenever one was rolled back."""

    def create(
        self, collection: Collection, id: str, fields: Mapping[str, Any], derived: Mapping[str, Any] = NOTHING
    ) -> int:
        """Inserts a row and logs it; fields that are None are left out. Gives its `ord` (the change's HLC).

        `derived` columns are written with the row and not logged.
        """
        ...

    def edit(
        self,
        collection: Collection,
        id: str,
        at: At,
        fields: Mapping[str, Any],
        derived: Mapping[str, Any] = NOTHING,
    ) -> dict[str, int]:
        """Sets fields of a row that was read in this transaction and logs them; gives the row's heads as they are now.

        `derived` as in `create`.
        """
        ...

    def delete(self, collection: Collection, id: str, at: At) -> None:
        """Deletes a row and logs that."""
        ...

    def forget(self, collection: Collection, id: str) -> None:
        """Removes a row together with its whole history, as if it had never been."""
        ...

    def forget_history(self, collection: Collection, id: str) -> None:
        """Removes the history of a row up to its last deletion; a row made anew under that id keeps its own."""
        ...

    def moved(self, before: str | None, after: str | None) -> None:
        """Counts a task that went from one `tally_key` to another (None: not there) into `Store.tally` on commit."""
        ...


class Store(Protocol):
    """Durable, ordered, and the only one that writes."""

    tally: dict[str, int]
    """The number of tasks by `tally_key`, as of the last commit."""
    incarnation: int
    """Grows by one at every start."""
    node: str
    """The UUID of this node."""

    async def write(self, fn: Callable[[Tx], T], *, bulk: bool = False, then: Callable[[T], None] | None = None) -> T:
        """Runs `fn` in a transaction and returns after that is synced to the disk.

        What `fn` raises is raised here, and nothing of it was written. Raises Retryable(`disk_full`, `store_busy`,
        `store_closed`) and Fatal(`store_io`). `fn` runs on the event loop, so it must not block and takes well under
        a millisecond; one that touches many rows is `bulk` and runs on the writer's thread. `then` is called with the
        value on the event loop once that is committed, even where the caller was cancelled or given up meanwhile: what
        is kept in memory of the journal is set there. It must not raise.
        """
        ...

    async def read(self, fn: Callable[[Reader], T]) -> T:
        """Runs `fn` against one consistent, committed state; it must be short."""
        ...
