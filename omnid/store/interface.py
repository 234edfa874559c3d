"""What the rest of omnid knows of the store: transactions are functions, and rows are logged as they change."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar
from zoneinfo import ZoneInfo

from msgspec import Struct

from omnid.model import Problem, Task

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

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


class At(Struct, frozen=True):
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
        "route",
        "budget_at_ms",
        "input_hash",
    ),
    json=frozenset({"work", "labels", "problem", "route"}),
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
        "origin",
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
SCHEDULE = Collection(
    "schedule",
    (
        "name",
        "origin",
        "role",
        "schedule",
        "task",
        "params",
        "events",
        "enabled",
        "created_at_ms",
        "next_at_ms",
        "last_at_ms",
        "last_task",
        "runs",
        "skipped",
        "problem",
    ),
    json=frozenset({"schedule", "task", "params", "problem"}),
)
ASK = Collection("ask", ("task_id", "event", "about", "created_at_ms"))

COLLECTIONS: Mapping[str, Collection] = {
    c.name: c for c in (TASK, ATTEMPT, NOTE, GATE, PERMIT, ANSWER, ORIGIN, CALL, OUTAGE, OUTBOX, ASK, SCHEDULE)
}


def tally_key(state: str, reason: str | None) -> str:
    """Gives what a task is counted under: its state, and for a waiting one its reason (``waiting:backoff``)."""
    return f"{state}:{reason}" if state == "waiting" else state


class Taken(Exception):
    """A row can't be created because one with its id, its name or its key is there; nothing was written."""


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
    zone: ZoneInfo
    """The zone of days and hours."""
    memory: dict[str, Any]
    """What is worth knowing from one transaction to the next; empty again whenever one was rolled back."""
    stirred: bool
    """Whether something in the transaction may let a task start; see `Store.attend`."""
    ended: list[str]
    """The attempts that ended in the transaction."""
    begun: list[str]
    """The executors of the attempts that began in it."""
    follow: "Follow | None"
    """See `Store.follow`."""

    def create(
        self, collection: Collection, id: str, fields: Mapping[str, Any], derived: Mapping[str, Any] = NOTHING
    ) -> int:
        """Inserts a row and logs it; fields that are None are left out. Gives its `ord` (the change's HLC).

        `derived` columns are written with the row and not logged. Raises Taken.
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

    def forget(self, collection: Collection, *ids: str) -> None:
        """Removes rows together with their whole history, as if they had never been."""
        ...

    def forget_history(self, collection: Collection, id: str, before_hlc: int) -> None:
        """Removes the history of a row up to its last deletion before an HLC; what came since then stays."""
        ...

    def moved(self, before: str | None, after: str | None) -> None:
        """Counts a task that went from one `tally_key` to another (None: not there) into `Store.tally` on commit."""
        ...

    def ring(self, name: str) -> None:
        """Lets `Store.rung` hear the name once this is committed."""
        ...

    def stamp(self) -> int:
        """Gives a number that grows with every row that is created: the HLC of the next one."""
        ...


Follow = Callable[[Tx, Task | None, Task], None]


class Outcome(Protocol[T_co]):
    """What became of a function that was posted."""

    def outcome(self) -> T_co:
        """Gives its value, or raises what it raised or what kept it from being written."""
        ...


class Trouble(NamedTuple):
    """Why the last write failed although it was a good one."""

    at_s: float
    """When (monotonic)."""
    problem: Problem


class Store(Protocol):
    """Durable, ordered, and the only one that writes."""

    tally: dict[str, int]
    """The number of tasks by `tally_key`, as of the last commit."""
    incarnation: int
    """Grows by one at every start."""
    node: str
    """The UUID of this node."""
    trouble: Trouble | None
    """Set while the disk is full; the next write that succeeds ends it."""

    @property
    def zone(self) -> ZoneInfo:
        """The zone of days and hours that transactions get; UTC until it is set."""
        ...

    @zone.setter
    def zone(self, zone: ZoneInfo) -> None: ...

    rung: Callable[[str], None] | None
    """Hears on the event loop each name that a committed transaction rang."""

    def set_follow(self, follow: Follow) -> None:
        """Has `follow` called inside each transaction that changes the state of a task or why it waits.

        It is handed the task before (None: it is new) and after, may write, and may run on another thread.
        """
        ...

    async def write(
        self,
        fn: Callable[[Tx], T],
        *,
        bulk: bool = False,
        patient: bool = False,
        then: Callable[[T], None] | None = None,
    ) -> T:
        """Runs `fn` in a transaction and returns after that is synced to the disk.

        What `fn` raises is raised here, and nothing of it was written. Raises Retryable(`disk_full`, `store_busy`,
        `store_closed`) and Fatal(`store_io`). `fn` runs on the event loop, so it must not block and takes well under
        a millisecond; one that touches many rows is `bulk` and runs on the writer's thread. One that nobody waits for
        is `patient`: whatever else waits has its turn between two of them. `then` is called with the
        value on the event loop once that is committed, even where the caller was cancelled or given up meanwhile: what
        is kept in memory of the journal is set there. It must not raise.
        """
        ...

    def post(
        self,
        fn: Callable[[Tx], T],
        done: Callable[[Outcome[T]], None],
        *,
        then: Callable[[T], None] | None = None,
        patient: bool = False,
    ) -> None:
        """Does what `write` does for a caller without a task: `done` is called, once, where `write` would return.

        It is called on the event loop, at once where the store is closed, and must not raise.
        """
        ...

    def attend(self, look: Callable[[Tx], T], then: Callable[[T], None], failed: Callable[[], None]) -> None:
        """Has `look` run, as by `write`, whenever a transaction has stirred something up (`Tx.stirred`).

        It runs behind all that gathered, in their own transaction: it sees what they leave, and needs no commit of its
        own. Only behind a `bulk` function it has one. `failed` is called on the loop where it raised or isn't written.
        """
        ...

    async def read(self, fn: Callable[[Reader], T]) -> T:
        """Runs `fn` against one consistent, committed state; it must be short."""
        ...

    async def copy(self, path: Path, bytes_max: int) -> int:
        """Copies one committed state into a new file, for this user only, and gives its size; nothing waits for that.

        Raises Retryable(`no_snapshot`) where it can't be done now, or would take more than `bytes_max`.
        """
        ...

    async def peek(self, fn: Callable[[Reader], T]) -> T:
        """Does what `read` does on the event loop, for a few look-ups by key: a thread would cost more than they do.

        Where there turns out to be more to do, it is done on a thread after all: `fn` may run twice.
        """
        ...
