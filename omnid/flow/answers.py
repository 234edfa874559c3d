"""Answers where the question was asked: what is written to the outbox when a task changes, and what comes back.

`Announcer` is called inside every transaction that changes a task's state, so an answer is as durable as what it tells.
A question to a person carries a code that stands nowhere else but in its message, and is worth one answer: an agent
can pass a person's answer on, and can't answer for them.
"""

import hmac
import re
import shlex
import unicodedata
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from omnid.errors import Rejected
from omnid.flow.asking import message_of, open_requests
from omnid.flow.context import Context
from omnid.flow.inbox import keep_for_origin
from omnid.flow.intake import permit_id, title_of
from omnid.flow.notify import tell
from omnid.flow.texts import WORDS, excerpt, plain, say
from omnid.model import USER_ORIGIN, Attempt, Task, Work
from omnid.money import MICRO
from omnid.settings import Destination
from omnid.states import RUNNING, TERMINAL
from omnid.store import journal, outbox
from omnid.store.interface import ASK, Reader, Tx

TITLE_CHARS_MAX = 200
CODE_CHARS = 10
"""Of a code: 50 bits, which can't be guessed in the time in which a question stands."""
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: nothing in it looks like something else."""

_ANSWER = re.compile(r"\W*(\w+)\W*(\w*)\W*")


class Choice(NamedTuple):
    """What an answer does to a task."""

    number: int
    action: str
    """Of `task_control`."""


CHOICES: Mapping[str, tuple[Choice, ...]] = {
    "approval": (Choice(1, "approve"), Choice(3, "deny")),
    "uncertain": (Choice(1, "done"), Choice(2, "again"), Choice(3, "fail")),
    "budget": (Choice(3, "cancel"),),
    "login": (Choice(3, "cancel"),),
    "failed": (Choice(2, "retry"),),
    "cancelled": (Choice(2, "retry"),),
    "waiting": (Choice(2, "retry"), Choice(3, "cancel")),
}
"""What may be answered to what a task needs, or to the state that it is in."""
ASKED = frozenset({"approval", "uncertain"})
"""What only a person decides: the answer must carry the code."""
NEEDS_YOU = frozenset({"approval", "uncertain", "input", "budget", "login"})
NOTICED = frozenset({"approval", "uncertain", "input"})
"""Of these, what is told to people in general here; money and logins are told where they are found out."""


def event_of(before: Task | None, after: Task) -> str | None:
    """Gives what a change of a task is to those who asked for it; None: nothing that they need to hear. Pure."""
    if after.state in TERMINAL:
        return after.state if before is None or before.state != after.state else None
    need = need_of(after)
    if need is None or (before is not None and (need_of(before) == need or _still_asks(before, need))):
        return None
    return need


def need_of(task: Task) -> str | None:
    """Gives what a task waits for that a person must do; a cap that leaves room again by itself is none. Pure."""
    if task.state == "uncertain":
        return "uncertain"
    if task.state == "input_required":
        return "input"
    if task.state != "waiting" or (task.reason == "budget" and task.wake_at_ms is not None):
        return None
    return task.reason if task.reason in ("approval", "budget") else None


def _still_asks(task: Task, asked: str) -> bool:
    """Tells whether a task waits for an approval that something else, a pause, hides for the moment."""
    return asked == "approval" and task.state == "waiting" and task.approval == "needed"


def work_text(work: Work) -> str:
    """Gives all of what would run, as a person must see it before they approve it."""
    lines = [shlex.join(work.argv)] if work.argv else []
    if work.tool is not None:
        lines.append(f"{work.server}.{work.tool} {msgspec.json.encode(work.arguments or {}).decode()}")
    for name, value in (("prompt", work.prompt), ("stdin", work.stdin), ("cwd", work.cwd)):
        if value is not None:
            lines.append(f"{name}: {value}")
    for name, values in (("env", work.env), ("check", work.check)):
        if values:
            lines.append(f"{name}: {shlex.join(values)}")
    return "\n".join(lines)


def reaches_a_person(section: Destination | None, reply_to: Mapping[str, Any], origin: str) -> bool:
    """Tells whether a message surely goes to a person, so that it may hold a code. Pure.

    It mustn't go through an agent first, nor to a place that the agent has chosen which asks: that could be its own.
    """
    if section is None:
        return False
    target, session = reply_to.get("target"), reply_to.get("session")
    straight = section.kind == "openclaw" and section.executor is None
    if straight and not (target or section.target):
        return False
    if origin == USER_ORIGIN:
        return True
    chosen = {target} if straight else {target, session}
    return (bool(section.target) or not straight) and chosen <= {None, section.target}


class Announcer:
    """Writes answers and notices when a task changes; see `Store.set_follow`.

    It may run on the writer's thread, so it draws no ids and no chance: a code is made of its key and the log's stamp.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._key = "".join(context.clock.uuid() for _ in range(4)).encode()

    def __call__(self, tx: Tx, before: Task | None, after: Task) -> None:
        """Writes down what there is to tell of a change, in the transaction that makes it."""
        reply_to = after.work.reply_to
        event = event_of(before, after)
        if reply_to is not None:
            if event is None and before is not None and _lacks_login(tx, before, after):
                event = "login"
            need = need_of(after)
            for id, asked in tx.all("asks_of", after.id):
                if asked != need and not _still_asks(after, asked):
                    tx.forget(ASK, id)
            if event is not None:
                self._answer(tx, after, event, reply_to)
        if event is not None:
            keep_for_origin(tx, self._context.config, after, event)
        if event == "failed" and not _decided_by_a_person(before, after):
            problem = after.problem.what if after.problem else ""
            tell(tx, self._context.config, "failed", after.id, task=after.name, title=_title(after), problem=problem)
        elif event in NOTICED:
            fields = {"why": event, "task": after.name, "title": _title(after), "executor": after.executor}
            fields["question"] = _asked(tx, after) if event == "input" else ""
            tell(tx, self._context.config, "needs_you", after.id, **fields)

    def _answer(self, tx: Tx, task: Task, event: str, reply_to: Mapping[str, Any]) -> None:
        config = self._context.config
        section = next((one for one in config.destination if one.name == reply_to["channel"]), None)
        code, shown = "", ""
        if event in ASKED:
            executor = self._context.executors.get(task.executor)
            exact = task.work if executor is None else executor.exact(task.work)
            shown = work_text(exact)
            # Nobody can approve what a message doesn't show whole.
            whole = event != "approval" or shown == excerpt(shown)
            if whole and reaches_a_person(section, reply_to, task.origin):
                code = self._ask(tx, task, event, permit_id(task.origin, task.executor, exact))
        row = tx.one("attempt_by_number", task.id, task.attempt) if task.attempt else None
        last = None if row is None else journal.attempt_of(row)
        cost = cost_of(tx, task.id)
        result = excerpt(_told(tx, task, event, shown, last))
        text = message(task, event, result, cost, code=code, language=config.notify.language)
        body = {
            "event": event,
            "text": text,
            "task": task.name,
            "task_id": task.id,
            "title": _title(task),
            "result": result or None,
            "problem": task.problem,
            "cost_usd": cost and cost.usd,
            "choices": [choice.number for choice in CHOICES.get(event, ())],
            "target": reply_to.get("target"),
            "session": reply_to.get("session"),
        }
        rows_max = config.outbox.rows_max
        outbox.put(tx, str(reply_to["channel"]), "answer", task.id, body, rows_max=rows_max)

    def _ask(self, tx: Tx, task: Task, event: str, about: str) -> str:
        """Makes the code of a question; once its message is delivered, the journal holds but its digest."""
        drawn = int.from_bytes(hmac.new(self._key, f"{task.id} {tx.stamp()}".encode(), sha256).digest())
        code = "".join(ALPHABET[drawn >> 5 * place & 31] for place in range(CODE_CHARS))
        tx.create(ASK, _digest(code), {"task_id": task.id, "event": event, "about": about, "created_at_ms": tx.now_ms})
        return code


def _lacks_login(tx: Tx, before: Task, after: Task) -> bool:
    """Tells whether a task was taken back for want of a login that it hadn't lacked before."""
    if before.state not in RUNNING or after.state != "idle":
        return False
    told = before.problem is not None and after.problem is not None and before.problem.code == after.problem.code
    return not told and tx.one("gate_by_id", f"login:{after.executor}") is not None


class Cost(NamedTuple):
    """What a task has cost."""

    usd: float | None
    """None: nobody knows."""


def message(task: Task, event: str, result: str, cost: Cost | None, *, code: str, language: str) -> str:
    """Puts an answer into words: what became of the task, its result, its cost, and what may be replied. Pure."""
    problem = plain(task.problem.what) if task.problem else ""
    fields = {"task": task.name, "title": _title(task), "executor": task.executor, "problem": problem}
    lines = [say(language, f"answer.{event}", **fields).rstrip()]
    if result:
        lines.append(result)
    if event not in NEEDS_YOU and cost is not None:
        lines.append(say(language, "cost.unknown" if cost.usd is None else "cost", usd=_usd(cost.usd or 0.0)))
    if event in ASKED and not code:
        do = f"omnictl approve {task.name}" if event == "approval" else f"omnictl resolve {task.name}"
        lines.append(say(language, "reply.omnictl", do=do))
    elif event == "input":
        lines.append(say(language, "reply.input", do=f"omnictl answer {task.name}"))
    elif CHOICES.get(event) and event != "cancelled":
        said = [say(language, f"choice.{choice.number}") for choice in CHOICES[event]]
        choices = say(language, "between").join(said)
        lines.append(say(language, "reply.code" if code else "reply", choices=choices, code=code))
    return "\n".join(lines)


def cost_of(reader: Reader, task_id: str) -> Cost | None:
    """Gives what all attempts of a task have cost; None where they cost nothing."""
    row = reader.one("cost_of_task", task_id)
    begun, known, microusd, reserved = row or (0, 0, None, 0)
    if not known and not reserved:
        return None
    return Cost(None if known < begun else (microusd or 0) / MICRO)


class Answer(NamedTuple):
    """What somebody has replied: the choice, and the code behind it ("" for none)."""

    number: int
    code: str


def read_answer(text: str) -> Answer:
    """Reads ``1 k7f39m2xq4``, ``again``, ``核准``; raises Rejected(`bad_answer`). Pure."""
    match = _ANSWER.fullmatch(unicodedata.normalize("NFKC", text).casefold())
    number = WORDS.get(match[1]) if match is not None else None
    if match is None or number is None:
        raise Rejected("bad_answer", text=repr(text[:80]), detail="it is none of 1, 2 and 3")
    return Answer(number, match[2])


def action_of(task: Task, answer: Answer) -> str:
    """Gives the action that an answer means for a task as it is now; raises Rejected(`bad_answer`). Pure."""
    choices = CHOICES.get(need_of(task) or task.state, (Choice(3, "cancel"),))
    if task.state == "completed":
        choices = ()
    for choice in choices:
        if choice.number == answer.number:
            return choice.action
    offered = ", ".join(f"{choice.number} ({choice.action})" for choice in choices) or "nothing any more"
    detail = f"{task.name} is {task.state} and takes {offered}"
    raise Rejected("bad_answer", text=str(answer.number), detail=detail)


def take_code(tx: Tx, task: Task, code: str) -> str:
    """Uses up the code of the question that a task has asked, and gives the permit of what the question showed.

    Raises Rejected(`bad_code`) where it is another.
    """
    row = tx.one("ask_by_id", _digest(code.replace("o", "0").replace("i", "1").replace("l", "1")))
    if row is None or row[1] != task.id or row[2] != need_of(task):
        raise Rejected("bad_code", task=task.name)
    tx.forget(ASK, row[0])
    return str(row[3])


def _digest(code: str) -> str:
    return sha256(code.encode()).hexdigest()


def _decided_by_a_person(before: Task | None, after: Task) -> bool:
    """Tells whether a task has failed because somebody said so, who needn't be told."""
    if after.problem is not None and after.problem.code == "not_approved":
        return True
    return before is not None and before.state == "uncertain" and before.problem == after.problem


def _told(reader: Reader, task: Task, event: str, shown: str, last: Attempt | None) -> str:
    """Gives what a message quotes: what would run, what is asked, or what came out."""
    if event == "approval":
        return shown
    if event == "input":
        return _asked(reader, task)
    return "" if event in NEEDS_YOU else _output(last)


def _asked(reader: Reader, task: Task) -> str:
    return "\n".join(message_of(request) for request in open_requests(reader, task))


def _output(last: Attempt | None) -> str:
    if last is None:
        return ""
    if last.output:
        return last.output
    return "" if last.value is None else msgspec.json.encode(last.value).decode()


def _title(task: Task) -> str:
    return excerpt(title_of(task.work), TITLE_CHARS_MAX)


def _usd(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 0.01 or amount == 0 else f"{amount:.4f}"
