"""The task's state machine, as a table; and the reasons for which a task waits, decided from facts. Pure."""

from typing import NamedTuple

from msgspec import Struct

from omnid.errors import Rejected

STATES = (
    "idle",
    "dispatching",
    "executing",
    "waiting",
    "input_required",
    "uncertain",
    "completed",
    "failed",
    "cancelled",
)
TERMINAL = frozenset({"completed", "failed", "cancelled"})
RUNNING = frozenset({"dispatching", "executing", "input_required"})
"""States in which a task occupies its lane and its attempt is open."""

REASONS = ("paused", "approval", "dependency", "not_before", "hours", "budget", "backoff")
"""A task's own reasons to wait, the first that holds being the one shown."""

GATES = ("paused", "login", "executor", "cloud", "link", "rate_limit", "budget", "hours")
"""Causes of gates that are stored; `lane` and `slots` are computed from what runs."""

NEVER_MS = 253_402_300_799_999
"""The last millisecond that a time may name: what waits until then waits for a person."""

TABLE: dict[tuple[str, str], str] = {
    ("idle", "hold"): "waiting",
    ("idle", "start"): "executing",
    ("idle", "send"): "dispatching",
    ("idle", "cancel"): "cancelled",
    ("idle", "finish"): "completed",
    ("idle", "give_up"): "failed",
    ("waiting", "hold"): "waiting",
    ("waiting", "release"): "idle",
    ("waiting", "cancel"): "cancelled",
    ("waiting", "finish"): "completed",
    ("waiting", "give_up"): "failed",
    ("dispatching", "begin"): "executing",
    ("dispatching", "recall"): "idle",
    ("dispatching", "succeed"): "completed",
    ("dispatching", "fail"): "failed",
    ("dispatching", "again"): "idle",
    ("dispatching", "lose"): "uncertain",
    ("dispatching", "cancel"): "cancelled",
    ("executing", "succeed"): "completed",
    ("executing", "fail"): "failed",
    ("executing", "again"): "idle",
    ("executing", "lose"): "uncertain",
    ("executing", "ask"): "input_required",
    ("executing", "cancel"): "cancelled",
    ("input_required", "answer"): "executing",
    ("input_required", "succeed"): "completed",
    ("input_required", "fail"): "failed",
    ("input_required", "again"): "idle",
    ("input_required", "lose"): "uncertain",
    ("input_required", "cancel"): "cancelled",
    ("uncertain", "succeed"): "completed",
    ("uncertain", "fail"): "failed",
    ("uncertain", "again"): "idle",
    ("uncertain", "finish"): "completed",
    ("uncertain", "give_up"): "failed",
    ("uncertain", "cancel"): "cancelled",
    ("failed", "retry"): "idle",
    ("failed", "finish"): "completed",
    ("cancelled", "retry"): "idle",
    ("cancelled", "finish"): "completed",
}
"""(state, event) -> next state. What is not listed is refused."""


def advance(state: str, event: str) -> str:
    """Gives the state after the event; raises Rejected(`bad_event`) where the table doesn't list it."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise Rejected("bad_event", state=state, event=event) from None


class Facts(Struct, frozen=True):
    """What decides whether a task that isn't running waits for a reason of its own."""

    now_ms: int
    paused: bool
    approval: str | None
    open_dependencies: int
    not_before_ms: int | None
    retry_at_ms: int | None
    opens_ms: int | None = None
    """When its hours begin next; None: it has none. Within them it is not later than `now_ms`."""
    budget_at_ms: int | None = None


class Wait(NamedTuple):
    """A reason of `REASONS`, and when it ends by itself (None: something must happen first)."""

    reason: str
    wake_at_ms: int | None


def own_wait(facts: Facts) -> Wait | None:
    """Gives the task's own reason to wait, or None when it may start as soon as the gates allow it."""
    if facts.paused:
        return Wait("paused", None)
    if facts.approval == "needed":
        return Wait("approval", None)
    if facts.open_dependencies:
        return Wait("dependency", None)
    if facts.not_before_ms is not None and facts.not_before_ms > facts.now_ms:
        return Wait("not_before", facts.not_before_ms)
    if facts.opens_ms is not None and facts.opens_ms > facts.now_ms:
        return Wait("hours", facts.opens_ms)
    if facts.budget_at_ms is not None and facts.budget_at_ms > facts.now_ms:
        return Wait("budget", None if facts.budget_at_ms == NEVER_MS else facts.budget_at_ms)
    if facts.retry_at_ms is not None and facts.retry_at_ms > facts.now_ms:
        return Wait("backoff", facts.retry_at_ms)
    return None


def mermaid() -> str:
    """Draws `TABLE` as a Mermaid state diagram; docs/states.md holds exactly this."""
    lines = ["stateDiagram-v2", "    [*] --> idle: submit"]
    lines += [f"    {state} --> {after}: {event}" for (state, event), after in TABLE.items()]
    lines += [f"    {state} --> [*]" for state in STATES if state in TERMINAL]
    return "\n".join(lines)
