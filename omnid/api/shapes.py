"""The parameters and results of every operation: what crosses the socket, MCP, and later HTTP.

Parameters refuse unknown fields. Times are Unix milliseconds (`_at_ms`, `_ms`), durations seconds (`_s`), sizes bytes.
A `task` parameter takes a UUID, a short name (``t7``) of the caller's origin, or ``origin/t7``.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from omnid.api.shapes_asks import AnswerAction, Content, Key, QuestionView
from omnid.api.shapes_money import TaskMoney, Today
from omnid.api.shapes_outbox import OutboxView
from omnid.api.shapes_runners import RunnerView
from omnid.model import Millis, Name, Ordinal, Params, Priority, Problem, Submit, Submitted

TaskRef = Annotated[str, Meta(min_length=1, max_length=200, description="UUID, t7, or origin/t7")]
WaitS = Annotated[float, Meta(ge=0, le=50, description="Seconds to wait for the end of the task, at most 50")]


class Empty(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No parameters."""


class SubmitBatch(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many tasks, all or none."""

    tasks: list[Submit]


class SubmittedBatch(Struct, frozen=True):
    """The tasks of a batch, in its order."""

    tasks: list[Submitted]


class TaskBrief(Struct, frozen=True):
    """A task in one line."""

    id: str
    name: str
    origin: str
    state: str
    reason: str | None
    """Why it waits: a reason of its own, or the cause of the gate it stands behind."""
    wake_at_ms: int | None
    title: str
    executor: str
    priority: int
    lane: str | None
    kind: str
    labels: tuple[str, ...]
    attempt: int
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    problem: Problem | None


class AttemptView(Struct, frozen=True):
    """One attempt of a task."""

    id: str
    number: int
    executor: str
    started_at_ms: int
    ended_at_ms: int | None
    outcome: str | None
    exit_code: int | None
    problem: Problem | None
    output: str | None
    output_bytes: int | None
    value: Any
    cost_usd: float | None
    reserved_usd: float | None = None
    """What was reserved for it at its start; None: it costs nothing."""


class TaskView(Struct, frozen=True):
    """A task with everything that is known of it."""

    task: TaskBrief
    why: str
    work: dict[str, Any]
    key: str | None
    assignee: str | None
    parent: str | None
    """The task from inside whose attempt it was submitted."""
    not_before_ms: int | None
    deadline_ms: int | None
    approval: str | None
    after: list[str]
    attempts: list[AttemptView]
    attempts_total: int
    timed_out: bool
    """True where `wait_s` passed before the task ended."""
    workspace: dict[str, Any] | None = None
    """Where its work lies, if it has a place of its own: kind, path, branch, base, repository, notes."""
    money: TaskMoney | None = None
    """What it has cost; None: it costs nothing."""
    questions: list[QuestionView] | None = None
    """What it asks, and waits to be answered."""


class Get(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which task, and how long to wait for its end."""

    task: TaskRef
    wait_s: WaitS = 0
    output: bool = True
    """Whether the attempts carry their output."""


class Search(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A filter; without one: all tasks."""

    states: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    executor: str | None = None
    origin: str | None = None
    lane: str | None = None
    since_ms: Millis | None = None
    text: Annotated[str, Meta(max_length=200, description="Part of the title")] | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: str | None = None
    inbox: Annotated[
        bool, Meta(description="Instead: what ended while you were away, oldest first; its cursor acknowledges")
    ] = False


class Page(Struct, frozen=True):
    """Tasks, newest first, and where to go on (None: that was all)."""

    tasks: list[TaskBrief]
    next: str | None


class Log(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which output, from which byte on; `wait_s` waits for more of a running attempt."""

    task: TaskRef
    attempt: Ordinal | None = None
    offset_bytes: Ordinal = 0
    limit_bytes: Annotated[int, Meta(ge=1, le=1024 * 1024)] = 64 * 1024
    wait_s: WaitS = 0


class LogPart(Struct, frozen=True):
    r"""A piece of an attempt's output, as text (undecodable bytes as ``\xNN``)."""

    text: str
    next_offset_bytes: int
    attempt: int
    ended: bool
    """True where the attempt has ended and this is its last piece."""


Action = Literal[
    "cancel",
    "retry",
    "pause",
    "resume",
    "complete",
    "assign",
    "priority",
    "budget",
    "delete",
    "approve",
    "deny",
    "done",
    "again",
    "fail",
    "reply",
    "answer",
]
"""`done`, `again` and `fail` resolve an uncertain task; `reply` does what an answer to its message means; `answer`
answers a question of its attempt, as `task.answer` does."""


class Control(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do with a task.

    Agents may cancel, retry, pause, resume, change the priority, answer, and pass on a person's answer; people
    everything.
    """

    task: TaskRef
    action: Action
    executor: Name | None = None
    """For `assign`: the executor that gets it."""
    assignee: Name | None = None
    """For `assign`: the person or agent that gets it."""
    priority: Priority | None = None
    output: Annotated[str, Meta(max_length=65536)] | None = None
    """For `complete` and `done`: what came out of it."""
    cost_max_usd: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    """For `budget`: the most that all its attempts may cost from now on."""
    always: bool = False
    """For `approve` and `deny`: the same argv in the same directory needs no further answer."""
    text: (
        Annotated[
            str,
            Meta(
                max_length=16_384,
                description="For `reply`: a person's answer, word for word; for `answer`: the only field's value",
            ),
        ]
        | None
    ) = None
    key: Key | None = None
    """For `answer`: which question."""
    content: Content | None = None
    """For `answer`: the fields of the form."""
    response: AnswerAction | None = None
    """For `answer`: accept (it is left out then), decline or cancel."""


class Controlled(Struct, frozen=True):
    """The task after the action, and one sentence on what happens next."""

    task: TaskBrief
    why: str


class GateControl(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which executor to pause or resume; `*` is everything."""

    executor: Name = "*"


class GateView(Struct, frozen=True):
    """A closed gate."""

    id: str
    cause: str
    subject: str
    closed_at_ms: int
    wake_at_ms: int | None
    problem: Problem | None
    text: str
    """What is closed, why, and what opens it."""


class Gates(Struct, frozen=True):
    """The gates that are closed now."""

    gates: list[GateView]


class ExecutorView(Struct, frozen=True):
    """An executor and what it does now."""

    name: str
    kind: str
    running: int
    concurrency: int | None
    idempotent: bool


class NeedsYou(Struct, frozen=True):
    """A task that waits for a person, and the command that answers it."""

    task: str
    title: str
    what: str
    do: str


class Status(Struct, frozen=True):
    """How omnid is doing."""

    version: str
    pid: int
    mode: str
    started_at_ms: int
    now_ms: int
    state_dir: str
    tasks: dict[str, int]
    """Number of tasks by state."""
    reasons: dict[str, int]
    """Number of waiting tasks by reason."""
    running: int
    slots: int
    executors: list[ExecutorView]
    gates: list[GateView]
    needs_you: list[NeedsYou]
    needs_you_total: int
    next_wake_at_ms: int | None
    clients: int
    problems: list[Problem]
    """What a person must mend besides: a full disk, a damaged database, a missing key."""
    config_problem: Problem | None
    """Why the changed config on disk was not taken over, if so."""
    outbox: list[OutboxView] = []
    """What waits to be delivered, and what was given up."""
    runners: list[RunnerView] = []
    """The runners on other hosts."""
    today: Today | None = None
    """What today has cost, where there is a cap or a cost."""
    inbox: str | None = None
    """Which tasks of an agent ended that it hasn't acknowledged, in one line."""


class Why(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which task."""

    task: TaskRef


class WhyAnswer(Struct, frozen=True):
    """One sentence: what happened, why, what comes next; and the facts behind it."""

    task: str
    state: str
    text: str
    route: dict[str, Any] | None


class Operations(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the log."""

    since: Ordinal = 0
    """After this seq."""
    since_ms: Millis | None = None
    task: TaskRef | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Operation(Struct, frozen=True):
    """One entry of the log."""

    seq: int
    at_ms: int
    collection: str
    id: str
    kind: str
    fields: dict[str, Any]


class OperationsPage(Struct, frozen=True):
    """Entries of the log, oldest first; `next` is the `since` of the page after (None: that was all)."""

    operations: list[Operation]
    next: int | None


class Replay(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Up to which point: a seq of the log, or a time."""

    until_seq: Ordinal | None = None
    until_ms: Millis | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class Replayed(Struct, frozen=True):
    """The state as it was then; nothing of it is written anywhere."""

    until_seq: int
    at_ms: int | None
    tasks: dict[str, int]
    list: list[TaskBrief]


class Finding(Struct, frozen=True):
    """One check."""

    name: str
    ok: bool
    detail: str
    do: str | None = None


class Doctor(Struct, frozen=True):
    """Checks; `ok` where every one of them is."""

    ok: bool
    findings: list[Finding]


class ConfigRow(Struct, frozen=True):
    """One key of the config in use, and where its value comes from (default, file, or environment)."""

    key: str
    value: Any
    origin: str


class ConfigShown(Struct, frozen=True):
    """The config in use."""

    path: str
    rows: list[ConfigRow]


class ConfigChecked(Struct, frozen=True):
    """What is wrong with the config file on disk; nothing: it may be taken over."""

    path: str
    problems: list[Problem]
    reloaded: bool = False
    remarks: list[Problem] = []
    """What is strange about it, and keeps it from nothing."""


class Stop(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask the daemon to stop; running commands go on under their supervisors."""


class Stopping(Struct, frozen=True):
    """The daemon stops; `running` attempts go on and are adopted at its next start."""

    pid: int
    running: int


class Hello(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is on this connection. A session's request ids make its mutations repeatable."""

    session: Annotated[str, Meta(max_length=64, description="UUID of a relay's session")] | None = None
    role: Literal["person", "agent"] = "person"
    origin: Name | None = None
    version: str = ""
    attempt: Annotated[str, Meta(max_length=64, description="OMNID_ATTEMPT of the caller's environment")] | None = None
    """The attempt from inside which the client calls: its task is the parent of what is submitted."""
    readonly: bool = False
    """Over MCP: only the tools that change nothing."""
    expose: tuple[str, ...] | None = None
    """Over MCP: only these tools."""


class Welcome(Struct, frozen=True):
    """The daemon's answer; `incarnation` changes at every start."""

    version: str
    pid: int
    incarnation: int
    message_bytes_max: int
