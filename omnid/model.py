"""The things omnid speaks of: work, tasks, attempts, commands and results. All frozen; a change makes a new one.

Times are wall times in Unix milliseconds (`_at_ms`), durations are seconds (`_s`), sizes are bytes (`_bytes`).
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from omnid.errors import OmnidError, sentences
from omnid.patterns import EVENT, HOURS, NAME

Priority = Annotated[int, Meta(ge=-10, le=10, description="Higher starts first")]
Label = Annotated[str, Meta(min_length=1, max_length=100)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Millis = Annotated[int, Meta(ge=0, le=253_402_300_799_999, description="Unix milliseconds, up to the year 9999")]
Ordinal = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]

AGENT_ORIGIN = "agent"
"""The origin of agents that give no name."""
USER_ORIGIN = "user"
"""The origin of tasks that people submit; its tasks are shown as ``t7``, those of others as ``origin/t7``."""


class Problem(Struct, frozen=True):
    """An error as it is stored and sent: what happened, why, and what to do."""

    code: str
    what: str
    why: str
    do: str

    @classmethod
    def of(cls, error: OmnidError) -> "Problem":
        """Takes the sentences out of an error."""
        return cls(error.code, error.what, error.why, error.do)

    @classmethod
    def make(cls, code: str, /, **fields: object) -> "Problem":
        """Fills in a message of the catalogue; raises KeyError where the code or a field is missing."""
        return cls(code, *sentences(code, fields))


class Params(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameters: keyword fields, unknown ones refused."""


class ReplyTo(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an answer goes: to a `channel` (a destination of the config), there to a `target`, in a `session`."""

    channel: Annotated[str, Meta(min_length=1, max_length=64)]
    target: Annotated[str, Meta(max_length=500)] | None = None
    session: Annotated[str, Meta(max_length=500)] | None = None


class Schedule(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When something is run: at times (one of `cron`, `every_s` and `at`), on events, or by hand alone."""

    cron: Annotated[str, Meta(max_length=200, description="Minute hour day month weekday, as in crontab(5)")] = ""
    zone: Annotated[str, Meta(max_length=100, description="Time zone of `cron` and `at`; empty: daemon.zone")] = ""
    every_s: Annotated[float, Meta(ge=1, le=366 * 86400, description="Seconds from one run to the next")] | None = None
    at: Annotated[str, Meta(max_length=40, description="Once: RFC 3339, or a local time in `zone`")] = ""
    times_max: Annotated[int, Meta(ge=1, description="It ends after so many runs")] | None = None
    on: Annotated[
        tuple[Annotated[str, Meta(pattern=EVENT)], ...],
        Meta(max_length=16, description="Events: start, cloud.down, link.up:NAME, ..."),
    ] = ()
    missed: Annotated[
        Literal["run_once", "run_all", "skip"], Meta(description="What becomes of times that passed meanwhile")
    ] = "run_once"
    missed_max: Annotated[int, Meta(ge=1, le=1000, description="Of `run_all`: the last so many")] = 10
    overlap: Annotated[
        Literal["skip", "queue", "kill"], Meta(description="What happens where the run before goes on still")
    ] = "skip"


class NamedSchedule(Schedule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule that a submit asks for instead of a task."""

    name: Annotated[str, Meta(pattern=NAME)]


class Submit(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task to do: exactly one of `argv` (a command), `server` + `tool` (an MCP call), `prompt` (a model)."""

    argv: Annotated[tuple[str, ...], Meta(description="Program and arguments; no shell")] | None = None
    stdin: Annotated[str, Meta(description="Text for the command's standard input")] | None = None
    server: Annotated[str, Meta(description="Name of an mcp executor")] | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    prompt: str | None = None
    executor: Name | None = None
    priority: Priority = 0
    key: Annotated[str, Meta(min_length=1, max_length=200, description="Idempotency key")] | None = None
    not_before_ms: Millis | None = None
    after: Annotated[
        tuple[str, ...], Meta(description="Tasks that must succeed first; in a batch also `ref` names")
    ] = ()
    ref: Annotated[str, Meta(min_length=1, max_length=100, description="Name inside a batch")] | None = None
    lane: Annotated[str, Meta(min_length=1, max_length=200, description="Runs one task at a time")] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=30 * 86400, description="Of one attempt")] | None = None
    deadline_ms: Millis | None = None
    attempts_max: Annotated[int, Meta(ge=1, le=1000)] | None = None
    backoff_s: Annotated[float, Meta(ge=0, le=86400)] | None = None
    check: Annotated[tuple[str, ...], Meta(min_length=1, description="Command whose exit 0 means done")] | None = None
    labels: tuple[Label, ...] = ()
    kind: Annotated[str, Meta(min_length=1, max_length=50)] = "general"
    assignee: Name | None = None
    cwd: str | None = None
    env: Annotated[tuple[str, ...], Meta(description="Names of the daemon's environment variables to pass")] = ()
    origin: Name | None = None
    reply_to: ReplyTo | None = None
    workspace: (
        Annotated[
            Literal["worktree", "copy", "none"],
            Meta(description="Where an agent works: a git worktree of its own, ..."),
        ]
        | None
    ) = None
    only: Annotated[str, Meta(pattern=HOURS, description="Runs within these hours only: 23:00-07:00")] | None = None
    cost_max_usd: Annotated[float, Meta(ge=0, le=1e9, description="The most that all its attempts may cost")] | None = (
        None
    )
    model: Annotated[Name, Meta(description="For a prompt: a model's name, or cheap, strong, local")] | None = None
    offline: Annotated[
        Literal["park", "local", "fail"],
        Meta(description="While the cloud is gone a prompt waits, goes to a local model, or fails"),
    ] = "park"
    schedule: Annotated[NamedSchedule, Meta(description="Run it again and again instead of once")] | None = None


SINGLE = ("schedule", "key", "ref", "after", "origin", "not_before_ms", "deadline_ms")
"""Fields of a submit that belong to one task alone, so that the task of a schedule can't have them."""


class Scheduled(Struct, frozen=True):
    """A schedule as the journal holds it: `task` are the fields of the `Submit` that each run makes."""

    id: str
    name: str
    origin: str
    role: str
    """Whose rights its runs have: ``person`` or ``agent``."""
    schedule: Schedule
    task: dict[str, Any]
    params: dict[str, str]
    """What stands for ``{params.x}`` in its texts, unless a run by hand says otherwise."""
    enabled: bool
    created_at_ms: int
    next_at_ms: int | None = None
    last_at_ms: int | None = None
    last_task: str | None = None
    runs: int = 0
    skipped: int = 0
    """How many times passed without a run: missed, or because the run before went on still."""
    problem: Problem | None = None
    """Why its last run could not be submitted."""
    ord: int = 0


class Submitted(Struct, frozen=True):
    """The answer to a submit; it leaves after the transaction is synced."""

    id: str
    name: str
    state: str
    created: bool
    """False where the idempotency key was known: this is the task of then."""


class Work(Struct, frozen=True, omit_defaults=True):
    """What a task asks for, fixed at its submit. Exactly one of `argv`, `tool` and `prompt` is given."""

    argv: tuple[str, ...] | None = None
    stdin: str | None = None
    server: str | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    prompt: str | None = None
    executor: str | None = None
    """The executor that was asked for by name; None: the router chooses."""
    cwd: str | None = None
    env: tuple[str, ...] = ()
    """Names of environment variables that are passed on from the daemon's own environment; never values."""
    check: tuple[str, ...] | None = None
    timeout_s: float | None = None
    attempts_max: int | None = None
    backoff_s: float | None = None
    after: tuple[str, ...] = ()
    reply_to: dict[str, Any] | None = None
    workspace: str | None = None
    only: str | None = None
    cost_max_usd: float | None = None
    model: str | None = None
    """For a prompt: the model that was asked for, by name or alias."""
    offline: str = "park"
    """What becomes of a prompt while the cloud is gone: it waits, goes to a local channel, or fails."""


class TurnedDown(Struct, frozen=True, omit_defaults=True):
    """An executor that a rule named and that didn't get the work."""

    executor: str
    cause: str
    """``missing``, ``kind``, ``local``, ``cloud``, ``order``, or the cause of its closed gate (``rate_limit``, ...)."""
    why: str
    """The rest of a sentence that begins with the executor's name."""
    rule: str | None = None


class Route(Struct, frozen=True, omit_defaults=True):
    """The executor that gets the work, why, and what was turned down for it; written down when it is decided."""

    executor: str
    reason: str
    rule: str | None = None
    """The rule that decided; None: there was nothing to choose from."""
    turned_down: tuple[TurnedDown, ...] = ()
    runner: str | None = None
    """Of an attempt: the runner elsewhere that got its command; None: it ran in the daemon."""


def short_name(origin: str, number: int) -> str:
    """Gives the short name of a task: ``t7`` for people's, ``origin/t7`` for all others."""
    return f"t{number}" if origin == USER_ORIGIN else f"{origin}/t{number}"


class Task(Struct, frozen=True):
    """A task as the journal holds it. `ord` is the order of submission; `heads` the log's heads per field."""

    ord: int
    id: str
    origin: str
    number: int
    work: Work
    executor: str
    state: str
    priority: int = 0
    reason: str | None = None
    """Why a waiting task waits: one of `states.REASONS`."""
    wake_at_ms: int | None = None
    lane: str | None = None
    kind: str = "general"
    labels: tuple[str, ...] = ()
    assignee: str | None = None
    parent: str | None = None
    key: str | None = None
    body_hash: str | None = None
    created_at_ms: int = 0
    not_before_ms: int | None = None
    deadline_ms: int | None = None
    retry_at_ms: int | None = None
    paused: bool = False
    approval: str | None = None
    """None (not needed), `needed`, `denied`, or `granted:` and the id of exactly what was approved."""
    cancel: bool = False
    """A cancel was asked for; the task becomes cancelled when its attempt has ended."""
    attempt: int = 0
    """The number of the current (or last) attempt: the fencing token. 0: none yet."""
    failures: int = 0
    """Attempts that failed and count against `attempts_max`."""
    finished_at_ms: int | None = None
    problem: Problem | None = None
    route: Route | None = None
    """What the router decided, where it had a choice."""
    heads: dict[str, int] = {}
    budget_at_ms: int | None = None
    """Until when a cap keeps it from its start; `states.NEVER_MS`: until a person raises its own."""

    @property
    def name(self) -> str:
        """The short name: ``t7`` for people's tasks, ``origin/t7`` for all others."""
        return short_name(self.origin, self.number)


class Attempt(Struct, frozen=True):
    """One try of a task. It is open until `ended_at_ms` is set."""

    id: str
    task_id: str
    number: int
    executor: str
    idempotent: bool
    """Whether running it once more after a crash does no harm (promise 3)."""
    started_at_ms: int
    ended_at_ms: int | None = None
    outcome: str | None = None
    problem: Problem | None = None
    exit_code: int | None = None
    output: str | None = None
    """Head and tail of what it printed, as text."""
    output_bytes: int | None = None
    value: Any = None
    """The structured result, where the executor gives one (JSON)."""
    cost_usd: float | None = None
    """None is unknown, never 0."""
    route: dict[str, Any] | None = None
    heads: dict[str, int] = {}
    reserved_usd: float | None = None
    """What was reserved for it at its start; None: it costs nothing."""


class Command(Struct, frozen=True):
    """An attempt on its way to a runner."""

    attempt_id: str
    task_id: str
    number: int
    name: str
    executor: str
    work: Work
    timeout_s: float
    recover: bool = False
    """True for an attempt that was open when the daemon started: it may run already, or have ended."""
    idempotent: bool = False
    begun_before: int = 0
    """How many earlier attempts of the task had begun: an agent's session is resumed then."""
    session: str | None = None
    """The session that an agent named in one of them."""
    lost_before: bool = False
    """Whether nobody knows how one of them ended, and no person has said `again` since."""
    cost_max_usd: float | None = None
    """What was reserved for this attempt; None: nothing was, because no lid holds for it."""

    def ended(
        self,
        outcome: "Outcome",
        problem: Problem | None,
        *,
        cost_usd: float | None = None,
        park: "Park | None" = None,
    ) -> "Result":
        """Makes the result of this attempt, without output."""
        return Result(self.attempt_id, self.task_id, self.number, outcome, problem, cost_usd=cost_usd, park=park)


class InputRequest(Struct, frozen=True, omit_defaults=True):
    """What an executor asks a person for while its attempt runs, as MCP has it (an `InputRequest` of SEP-2322)."""

    method: str
    """``elicitation/create``."""
    params: dict[str, Any] = {}
    """For an elicitation: `message`, and the `requestedSchema` of a form or the `url` of a page (`mode`)."""


class InputResponse(Struct, frozen=True, omit_defaults=True):
    """What was answered to an input request: an `ElicitResult` of MCP."""

    action: Literal["accept", "decline", "cancel"]
    """`cancel`: nobody has decided."""
    content: dict[str, Any] | None = None
    """With `accept`, what was filled into the form; it fits its schema."""


class Cancel(Struct, frozen=True):
    """Asks a runner to end an attempt; one that it doesn't have is ignored."""

    attempt_id: str


class Mark(Struct, frozen=True):
    """What a runner sends to itself, to know when all has come that lay before it."""

    token: str


class Watch(Struct, frozen=True):
    """Asks a runner for heartbeats: one at once, then more until `for_s` have passed."""

    for_s: float
    token: str = ""
    """What the heartbeats that it brings about are to carry, so that they are told from those of before."""
    heard_leaving: bool = False
    """Whether its sender has heard that the runner leaves: it sends no more commands."""


class Heartbeat(Struct, frozen=True):
    """What a runner says of itself while it lives."""

    version: str
    incarnation: int
    """Grows by one at every start."""
    slots: int
    """How many attempts it runs at once."""
    running: int
    load: float
    """The machine's load average of the last minute, by core."""
    executors: dict[str, int]
    """Those that it offers now, and how many attempts each takes at once."""
    labels: tuple[str, ...] = ()
    leaving: bool = False
    """Whether it takes nothing new, because it is about to end."""
    attempts: tuple[str, ...] | None = None
    """Those that run there or wait for a slot; None: they are too many to be told."""
    token: str | None = None
    """Of the watch that it answers; None: it is a runner's of an earlier version."""


Outcome = Literal["success", "failure", "rejected", "timeout", "cancelled", "lost", "unstarted", "parked"]
"""How an attempt ends. `failure` and `timeout` may be retried and `rejected` may not; `lost` means nobody knows;
`unstarted` means that it surely had no effect, `parked` that a limit stopped it: neither counts."""


class Park(Struct, frozen=True):
    """Why an executor can take no work for now, as an attempt has found out: its gate closes."""

    cause: str
    """``rate_limit`` or ``login``; or ``budget`` or ``channels``: then no gate closes, and the task itself waits."""
    wake_at_ms: int | None
    """When it lifts, where that was said."""


class Result(Struct, frozen=True):
    """What came back for an attempt."""

    attempt_id: str
    task_id: str
    number: int
    outcome: Outcome
    problem: Problem | None = None
    exit_code: int | None = None
    output: str | None = None
    output_bytes: int | None = None
    value: Any = None
    cost_usd: float | None = None
    park: Park | None = None
    """With the outcome `parked`, what closes the executor's gate."""
    call_costs: dict[str, int | None] = {}
    """What calls of it have cost that are not settled yet, in microdollars; None: nobody knows."""


class Delivery(Struct, frozen=True):
    """Something in an outbox, on its way to one destination. Its `id` lets the receiver drop a second one."""

    ord: int
    id: str
    destination: str
    kind: str
    """What it is: ``answer``, ``notice``; to a runner ``command`` or ``cancel``."""
    subject: str | None
    """What it is about: the id of a task, the name of an executor."""
    body: dict[str, Any]
    created_at_ms: int
    tries: int = 0
    retry_at_ms: int | None = None
    dead_at_ms: int | None = None
    """Since when it is given up, and waits for a person."""
    problem: Problem | None = None
    """Why the last try failed."""
    heads: dict[str, int] = {}


class Gate(Struct, frozen=True):
    """A shared reason why tasks can't start now; one row per cause, id ``cause:subject``."""

    id: str
    cause: str
    """One of `states.GATES`."""
    subject: str
    """What it closes: an executor's name, or ``*`` for all."""
    closed_at_ms: int
    wake_at_ms: int | None
    """When it is tried again; None: a person opens it."""
    problem: Problem | None = None
    failures: int = 0
    heads: dict[str, int] = {}


class Change(Struct, frozen=True):
    """One entry of the log: what was done to one row, in the transaction that did it."""

    seq: int
    hlc: int
    node: str
    incarnation: int
    collection: str
    id: str
    kind: str
    """`create`, `edit` or `delete`."""
    fields: dict[str, Any]
    prev: dict[str, int]
    """For an edit: the head (HLC) of each field that was seen and replaced."""
