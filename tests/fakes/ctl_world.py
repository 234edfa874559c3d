"""A scripted daemon and a world around omnictl, for its tests; every call is held against the shapes of the API."""

import io
import json
from collections import deque
from typing import Any

import msgspec

from omnid import errors
from omnid.api import shapes, shapes_mode, shapes_money, shapes_night, shapes_workspaces
from omnid.api.methods import METHODS
from omnid.api.shapes_asks import FieldView, QuestionView
from omnid.api.shapes_links import LinkList, LinkView
from omnid.api.shapes_routing import RouteExplained, RuleView
from omnid.api.shapes_runners import RunnerList, RunnerView
from omnid.ctl.context import World
from omnid.ctl.main import run
from omnid.model import Problem, Route, TurnedDown
from omnid.states import TERMINAL

NOW_MS = 1_795_000_000_000
ID = "0199a1b2-0000-7000-8000-000000000007"
PROBLEM = Problem("exit_code", "The command ended with exit code 2.", "make: no rule.", "`omnictl logs t7` shows it.")


def brief(**fields):
    base = {
        "id": ID,
        "name": "t7",
        "origin": "user",
        "state": "executing",
        "reason": None,
        "wake_at_ms": None,
        "title": "make -C x",
        "executor": "command",
        "priority": 0,
        "lane": None,
        "kind": "general",
        "labels": (),
        "attempt": 1,
        "created_at_ms": NOW_MS - 200_000,
        "started_at_ms": NOW_MS - 180_000,
        "finished_at_ms": None,
        "problem": None,
    }
    return shapes.TaskBrief(**{**base, **fields})


def attempt(**fields):
    base = {
        "id": ID,
        "number": 1,
        "executor": "command",
        "started_at_ms": NOW_MS - 180_000,
        "ended_at_ms": NOW_MS - 60_000,
        "outcome": "failure",
        "exit_code": 2,
        "problem": PROBLEM,
        "output": "one\ntwo\n",
        "output_bytes": 8,
        "value": None,
        "cost_usd": None,
    }
    return shapes.AttemptView(**{**base, **fields})


def view(task=None, **fields):
    base = {
        "task": task or brief(),
        "why": "t7 runs since 3 minutes.",
        "work": {"argv": ["make", "-C", "x y"], "cwd": "/work"},
        "key": None,
        "assignee": None,
        "parent": None,
        "not_before_ms": None,
        "deadline_ms": None,
        "approval": None,
        "after": [],
        "attempts": [],
        "attempts_total": 0,
        "timed_out": False,
    }
    return shapes.TaskView(**{**base, **fields})


def ended(state="completed", name="t7"):
    return view(brief(state=state, name=name, finished_at_ms=NOW_MS - 1000), why=f"{name} is {state}.")


def status(**fields):
    base = {
        "version": "0.1.0",
        "pid": 42,
        "mode": "normal",
        "started_at_ms": NOW_MS - 7_500_000,
        "now_ms": NOW_MS,
        "state_dir": "/",
        "tasks": {"completed": 3},
        "reasons": {},
        "running": 0,
        "slots": 4,
        "executors": [shapes.ExecutorView("command", "command", 0, None, False)],
        "gates": [],
        "needs_you": [],
        "needs_you_total": 0,
        "next_wake_at_ms": None,
        "clients": 1,
        "problems": [],
        "config_problem": None,
    }
    return shapes.Status(**{**base, **fields})


RUNNER = RunnerView(
    name="gpu-1",
    link="cable",
    state="lost",
    since_ms=NOW_MS - 1000,
    version="1",
    slots=4,
    running=2,
    load=0.5,
    executors={"command": 4},
    labels=["gpu"],
    heard_at_ms=NOW_MS - 60_000,
    attempts=2,
)
RUNNERS = RunnerList([RUNNER], "home", NOW_MS)
LINKS = LinkList(
    [
        LinkView("clients", "clients", "up", "", None, None, 2, ["up"] * 48),
        LinkView("broker", "a-broker-with-a-long-name", "degraded", "slow", 0.0123, 0.15, 7, [None, "down", "up"] * 16),
        LinkView("internet", "internet", None, "no channel of the config needs it", None, None, 0, [None] * 48),
    ],
    1800.0,
    NOW_MS,
)
SUBMITTED = shapes.Submitted(ID, "t7", "idle", created=True)
CONTROLLED = shapes.Controlled(brief(state="cancelled"), "t7 was cancelled.")
MODE = shapes_mode.ModeShown(
    mode="normal",
    since_ms=NOW_MS - 60_000,
    now_ms=NOW_MS,
    hold="normal",
    why="",
    gateway_gone=False,
    cloud_gone=False,
    probe_at_ms=None,
    channels=[
        shapes_mode.ChannelState(
            name="p1",
            models=("m",),
            local=False,
            failures=2,
            p50_s=1.5,
            running=0,
            closed_until_ms=NOW_MS + 1000,
            why_closed="it is overloaded",
            keys=[
                shapes_mode.KeyState("env:A", NOW_MS + 1000, None),
                shapes_mode.KeyState("env:B", None, "no such key"),
            ],
        )
    ],
    local_model=shapes_mode.LocalModel("asleep", "it needs more memory", None, 4_500_000_000),
    snapshots=[shapes_mode.SnapshotView("/state/snapshots/journal-1.db", NOW_MS - 60_000, 12_300_000)],
    no_snapshot=Problem.make("no_snapshot", path="/state/snapshots", detail="no room"),
)
ASKED = shapes_mode.Answered(
    "All is well.", "brainstem (default_model)", "", "Two wait.", ["Two wait.", "No more."], []
)
REHEARSED = shapes_mode.Rehearsed("", 2.5, 4_500_000_000, MODE.local_model)
OUTAGE = shapes_mode.OutageView("cloud", "model", NOW_MS - 60_000, None, 2, 0, None, "/state/snapshots/journal-1.db")
CHECKED = shapes_mode.ChannelChecked("p1", "env:A", False, "it refuses", "Look at it.")
PLACE = shapes_workspaces.WorkspaceView(
    task="t7",
    task_id=ID,
    kind="worktree",
    condition="kept",
    path="/w/t7-0",
    directory="/r",
    branch="omnid/t7-0",
    base="0" * 40,
    repository="/r",
    size_bytes=12_300,
    created_at_ms=NOW_MS - 600_000,
    notes=["uncommitted changes of /r are not in it: a"],
)
WHY = shapes.WhyAnswer("t7", "idle", "t7 starts as soon as a slot is free.", None)
ENTRY = shapes.Operation(5, NOW_MS, "task", ID, "create", {"state": "idle", "title": "x"})
RULES = RouteExplained(
    [
        RuleView(
            name="night",
            built_in=False,
            takes=("command", "mcp", "model"),
            executors=("codex", "gemini"),
            missing=(),
            kind=("a", "b"),
            labels=("x", "y"),
            text=tuple("abcdefg"),
            bytes_min=5,
            bytes_max=10,
            lane=("l",),
            hours="23:00-07:00",
        ),
        RuleView(
            name="heavy",
            built_in=True,
            takes=("model",),
            executors=("moltworker", "codex"),
            missing=("moltworker",),
            kind=(),
            labels=(),
            text=(),
            bytes_min=0,
            bytes_max=None,
            lane=(),
            hours="",
        ),
    ]
)
DECIDED = RouteExplained(
    RULES.rules,
    Route(
        "codex",
        "rule night",
        "night",
        (
            TurnedDown("moltworker", "missing", "isn't in the config", "heavy"),
            TurnedDown("gemini", "order", "comes after codex", "night"),
        ),
    ),
    "It goes to codex by rule night; turned down: moltworker isn't in the config.",
    True,
)
AMOUNTS = shapes_money.Amounts(1.84, 2.0, 0.0, 7)
SPENT = shapes_money.Spent(
    "executor",
    NOW_MS - 86_400_000,
    "UTC",
    AMOUNTS,
    [shapes_money.SpendRow("claude", AMOUNTS)],
    [shapes_money.CapView("budget.day_usd", "all", "day", 5.0, AMOUNTS, NOW_MS - 3_600_000, NOW_MS + 7_200_000)],
)
FINDING = shapes.Finding("log and tables", ok=True, detail="12 changes add up")

QUESTION = QuestionView(
    key="q1",
    method="elicitation/create",
    params={"message": "Which colours?", "url": "https://example.org"},
    fields=[FieldView("colours", "array", "Colours", True, ["r"], {"r": "Red", "g": "Green"})],
    asked_at_ms=NOW_MS - 60_000,
    until_ms=NOW_MS + 3_600_000,
)

AWAY = shapes_night.AwayDigest(
    text="7 done, 1 failed, 1 needs you.",
    since_ms=NOW_MS - 8 * 3_600_000,
    until_ms=NOW_MS,
    ended={"completed": 7, "failed": 1},
    parked=[],
    failed=[brief(name="t9", state="failed", finished_at_ms=NOW_MS, problem=PROBLEM)],
    needs_you=[shapes.NeedsYou("t12", "git push", "wants to run on command", "omnictl approve t12 | deny t12")],
    needs_you_total=1,
    spent_usd=None,
    cap_usd=None,
    limits=0,
    limits_s=0.0,
)
RECEIPT = shapes_night.Receipt(
    task=brief(state="completed", finished_at_ms=NOW_MS, title="claude -p 'fix | it'"),
    asked={"argv": ["claude", "-p", "fix | it"], "cwd": "/srv"},
    why="t7 was completed 0 s ago by claude-code; nothing comes next.",
    route={"executor": "claude-code", "reason": "rule programming"},
    attempts=[
        shapes_night.AttemptReceipt(
            1, "claude-code", "parked", NOW_MS - 90_000, NOW_MS - 60_000, 0, 1, None, "A limit."
        ),
        shapes_night.AttemptReceipt(2, "claude-code", "success", NOW_MS - 50_000, NOW_MS, 2, 0, 0.25, None),
    ],
    restarts=2,
    calls=2,
    spent_usd=0.25,
    reserved_usd=1.0,
    unknown=1,
    check=shapes_night.CheckReceipt(("make", "test"), True, "41 passed\n"),
    changes=" a.py | 2 +-\n 1 file changed\n",
    entries=12,
    sha256="ab" * 32,
)


class Daemon:
    """Answers each method with what the script holds for it, in order; the last answer stays."""

    def __init__(self, **script: Any) -> None:
        self.script = {
            name.replace("__", "."): deque(answers if isinstance(answers, list) else [answers])
            for name, answers in script.items()
        }
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.waited_s = 0.0

    def call(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        name = method.removeprefix("omnid/")
        method = METHODS[name]
        # As the socket does: through JSON, and nothing that the shape doesn't know.
        msgspec.json.decode(json.dumps(params).encode(), type=method.params)
        assert timeout_s > params.get("wait_s", 0)
        self.calls.append((name, params))
        answers = self.script[name]
        answer = answers[0] if len(answers) == 1 else answers.popleft()
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, method.result)
        if name == "task.get" and answer.task.state not in TERMINAL:
            self.waited_s += params.get("wait_s", 0)
        return json.loads(json.dumps(msgspec.to_builtins(answer)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Ran:
    def __init__(self, *argv: str, daemon: Daemon | None = None, stdin="", terminal=False, environ=None) -> None:
        stream = Terminal if terminal else io.StringIO
        out, err = stream(), stream()
        self.now_s = 0.0
        daemon = daemon or Daemon()

        def tick() -> float:
            self.now_s += 1.0
            return self.now_s + daemon.waited_s

        world = World(environ or {}, stream(stdin), out, err, lambda: daemon, lambda: NOW_MS, tick, lambda _: None)
        self.code = run(argv, world)
        self.out, self.err, self.calls = out.getvalue(), err.getvalue(), daemon.calls

    @property
    def json(self):
        (line,) = self.out.splitlines()
        return json.loads(line)


def down():
    return errors.Retryable("daemon_down", path="/s", detail="There is no socket.")
