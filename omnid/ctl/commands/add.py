"""``omnictl add``."""

import json
import os
from collections.abc import Iterator
from typing import Any, TextIO, cast

from omnid import wire
from omnid.ctl.context import Context
from omnid.ctl.options import Given, Option, Verb
from omnid.ctl.waiting import EXIT_TIMED_OUT, report, wait_for
from omnid.errors import OmnidError, Rejected

EXIT_ACCEPTED = 75
"""EX_TEMPFAIL of sysexits.h: the task is safe, and its end was not waited for long enough."""

_INPUT_CHARS_MAX = 64 << 20
_COMMAND_WORDS_MAX = 3
_SHELL = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1"})


def _add(context: Context) -> int:
    given = context.given
    if given.flag("wait-timeout") and not given.flag("wait"):
        given.misuse("--wait-timeout needs --wait")
    timeout_s = given.duration_s("wait-timeout")
    source = given.text("file")
    if given.arguments == ["-"]:
        source = source or "-"
    elif given.arguments:
        take_prompt(context)
    if source is None:
        added = [_send(context, "task.submit", {**work_of(given), **fields_of(context)})]
    else:
        if given.rest is not None:
            given.misuse("It takes a file of tasks or a command after --, not both")
        added = _add_file(context, source)
    if given.flag("wait"):
        return _wait(context, added, timeout_s)
    if context.json:
        context.give_json({"tasks": added} if source is not None else added[0])
        return 0
    for task in added:
        context.screen.put(task["name"])
    tell_next(context, added)
    return 0


def _wait(context: Context, added: list[dict[str, Any]], timeout_s: float | None) -> int:
    if len(added) == 1 and not context.json:
        # Who breaks the waiting off must know what to ask for later.
        context.screen.tell(f"{added[0]['name']} is accepted.")
    waited = wait_for(context, [task["id"] for task in added], timeout_s, known=True)
    code = report(context, waited)
    if code == EXIT_TIMED_OUT:
        context.screen.tell("Accepted and not done yet; `omnictl wait` goes on waiting.")
        return EXIT_ACCEPTED
    return code


def tell_next(context: Context, added: list[dict[str, Any]]) -> None:
    """Says what happens next, in one line."""
    if len(added) != 1:
        known = sum(not task["created"] for task in added)
        context.screen.tell(
            f"{len(added)} tasks accepted" + (f", {known} of them known by their key." if known else ".")
        )
        return
    try:
        text = context.call("task.why", task=added[0]["id"])["text"]
    except OmnidError as error:
        # The task is safe: an exit code other than 0 would have it submitted again.
        text = f"It is accepted; what comes next can't be told: {error.what}"
    before = "" if added[0]["created"] else "Known by its key, nothing was added. "
    context.screen.tell(before + text)


def work_of(given: Given) -> dict[str, Any]:
    """What is to be done, by the options: that it is exactly one thing is for the daemon to judge."""
    if given.rest == []:
        given.misuse("There is nothing after --")
    work = {
        "argv": given.rest,
        "server": given.text("server"),
        "tool": given.text("tool"),
        "arguments": given.json_object("arguments"),
        "prompt": given.text("prompt"),
    }
    if all(value is None for value in work.values()):
        given.misuse("It needs something to do: -- COMMAND..., --server and --tool, --prompt, or -f FILE")
    return work


def take_prompt(context: Context) -> None:
    """Takes the argument as a prompt, where it can't be a command that somebody forgot the -- before."""
    given, text = context.given, context.given.arguments[0]
    if any(given.flag(name) for name in ("file", "prompt", "server", "tool")) or given.rest is not None:
        given.misuse(f"It has no use for {text!r}: what is to be done is said already")
    if looks_like_command(text, context.world.environ.get("PATH", os.defpath)):
        hint = f"to run it: omnictl add -- {text}; for an agent: omnictl add --prompt '{text}'"
        given.misuse(f"{text!r} could be a command or a prompt. {hint}")
    given.values["prompt"] = [text]


def looks_like_command(text: str, path: str) -> bool:
    """Tells whether a text may be meant as a command: one word, or with options, paths or signs of a shell.

    So may a few words that begin with a program that is on the `path`: ``make test``.
    """
    words = text.split()
    if len(words) < 2:
        return text.isascii()  # In some scripts a whole sentence is one word.
    if any(word.startswith("-") or word in _SHELL for word in words) or "/" in words[0] or "=" in words[0]:
        return True
    folders = path.split(os.pathsep) if len(words) <= _COMMAND_WORDS_MAX else []
    return any(os.access(os.path.join(folder, words[0]), os.X_OK) for folder in folders if folder)


def fields_of(context: Context) -> dict[str, Any]:
    """All other fields, by the options; None where they weren't given."""
    given, now_ms = context.given, context.world.now_ms()
    after = given.commas("after")
    return {
        **{name: given.text(name) for name in ("key", "executor", "model", "lane", "kind", "assignee", "origin")},
        "offline": given.one_of("offline", ("park", "local", "fail")),
        "workspace": given.one_of("workspace", ("worktree", "copy", "none")),
        "only": given.hours("only"),
        "priority": given.whole("priority"),
        "after": after,
        "not_before_ms": given.future_ms("not-before", now_ms),
        "deadline_ms": given.future_ms("deadline", now_ms),
        "timeout_s": given.duration_s("timeout"),
        "attempts_max": given.whole("attempts"),
        "backoff_s": given.duration_s("backoff"),
        "check": given.words("check"),
        "labels": given.many("label"),
        "env": given.many("env"),
        "reply_to": _reply_to(given),
        "cost_max_usd": given.amount("cost-max"),
        "cwd": _directory(given.text("cwd") or "."),
        "stdin": _text(context.world.stdin, "standard input") if given.flag("stdin") else None,
    }


def _reply_to(given: Given) -> dict[str, Any] | None:
    text = given.text("reply-to")
    if text is None:
        if given.flag("reply-session"):
            given.misuse("--reply-session needs --reply-to")
        return None
    channel, _, target = text.partition(":")
    return given_of({"channel": channel, "target": target or None, "session": given.text("reply-session")})


def _add_file(context: Context, source: str) -> list[dict[str, Any]]:
    """Submits all tasks of a file; what the options say holds where a line says nothing."""
    if context.given.flag("stdin") or context.given.flag("key"):
        context.given.misuse("--stdin and --key are for one task; in a file each line has its own")
    text = _text(context.world.stdin, "standard input") if source == "-" else _read(source)
    defaults = fields_of(context)
    lines = list(_lines(text, source))
    if not lines:
        raise Rejected("bad_file", path=source, detail="there is no task in it")
    tasks = [_key({**given_of(defaults), **fields}) for _, fields in lines]
    try:
        added = _twice(context, "task.submit_batch", {"tasks": tasks})
    except OmnidError as error:
        line = _line_of(error, [number for number, _ in lines])
        if line is None:
            raise
        raise Rejected("bad_line", line=line, path=source, detail=error.what.rstrip(".")) from error
    return cast(list[dict[str, Any]], added["tasks"])


def _lines(text: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Rejected("bad_line", line=number, path=source, detail=f"it is no JSON ({error})") from error
        if not isinstance(fields, dict):
            raise Rejected("bad_line", line=number, path=source, detail="it is no JSON object")
        fields = cast(dict[str, Any], fields)
        try:
            wire.utf8(fields)
        except ValueError as error:
            raise Rejected("bad_line", line=number, path=source, detail=str(error).rstrip(".")) from error
        if isinstance(fields.get("cwd"), str):
            fields["cwd"] = _directory(fields["cwd"])
        yield number, fields


def _line_of(error: OmnidError, numbers: list[int]) -> int | None:
    """Finds the line that an error about ``tasks[3]`` of the batch means."""
    _, found, rest = f"{error.what} {error.why} {error.do}".partition("tasks[")
    position = rest.partition("]")[0]
    return numbers[int(position)] if found and position.isdigit() and int(position) < len(numbers) else None


def _send(context: Context, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    return _twice(context, method, _key(given_of(fields)))


def _twice(context: Context, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Sends it once more where the daemon was lost before its answer: the keys make it the same tasks."""
    try:
        return context.call(method, **params)
    except OmnidError as error:
        if error.code != "daemon_lost":
            raise
    return context.call(method, **params)


def _key(fields: dict[str, Any]) -> dict[str, Any]:
    return fields if fields.get("key") is not None else {**fields, "key": os.urandom(16).hex()}


def given_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Gives the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def _directory(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise Rejected("bad_cwd", cwd=path, why="The current directory was deleted.") from error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return _text(file, path)
    except OSError as error:
        raise Rejected("bad_file", path=path, detail=error.strerror or str(error)) from error


def _text(file: TextIO, name: str) -> str:
    try:
        text = file.read(_INPUT_CHARS_MAX + 1)
    except UnicodeDecodeError as error:
        raise Rejected("bad_file", path=name, detail="it is not UTF-8 text") from error
    if len(text) > _INPUT_CHARS_MAX:
        raise Rejected("bad_file", path=name, detail=f"it has more than {_INPUT_CHARS_MAX} characters")
    return text


TASK = (
    Option("server", "NAME", "MCP server (an executor of the config)"),
    Option("tool", "NAME", "Its tool"),
    Option("arguments", "JSON", "The tool's arguments"),
    Option("prompt", "TEXT", "Prompt for an agent or a model, where it could be taken for a command"),
    Option("executor", "NAME", "Executor that does it; else omnid chooses"),
    Option("cwd", "DIR", "Directory of the command (the current one)"),
    Option("env", "NAME", "Variable of the daemon's environment to pass on", many=True),
    Option("check", "COMMAND", "Done is done when this succeeds; split like a shell, without one"),
    Option("priority", "N", "-10 to 10, higher starts first (0)"),
    Option("lane", "NAME", "One task at a time in this lane"),
    Option("timeout", "DURATION", "Of one attempt: 90s, 10m, 1h30m"),
    Option("attempts", "N", "Try so often at most"),
    Option("backoff", "DURATION", "Longest wait before the second attempt; it doubles"),
    Option("label", "LABEL", "A label", many=True),
    Option("kind", "KIND", "general, programming, ..."),
    Option("assignee", "NAME", "Who takes care of it"),
    Option("only", "HOURS", "Start within these hours only: 23:00-07:00"),
    Option("workspace", "KIND", "Where an agent works: worktree, copy or none"),
    Option("cost-max", "USD", "The most that all its attempts may cost"),
    Option("model", "NAME", "For a prompt: a model's name, or cheap, strong, local"),
    Option("offline", "HOW", "For a prompt, while the cloud is gone: park (the default), local or fail"),
    Option("reply-to", "CHANNEL[:TARGET]", "Where the answer goes: a destination of the config"),
    Option("reply-session", "SESSION", "The session there that asked"),
)
"""What every task can have, also one of a schedule."""
_ONCE = (
    Option("file", "FILE", "Submit the tasks in FILE; - is standard input", short="f"),
    Option("stdin", None, "Read the command's standard input from here"),
    Option("key", "KEY", "Idempotency key: the same key, the same task"),
    Option("after", "TASK,...", "Start after these have succeeded"),
    Option("not-before", "TIME", "Start at +2h or 2026-11-21T08:00 at the earliest"),
    Option("deadline", "TIME", "Give up when it is not done by then"),
    Option("origin", "NAME", "Submit it in this name; the task is called NAME/t1 then"),
    Option("wait", None, "Wait for the end; exit code 0: completed, 1: not"),
    Option("wait-timeout", "DURATION", "Wait no longer than this; exit code 75 then"),
)

VERBS = {
    "add": Verb(
        _add,
        "Submits a task and prints its name; once it is printed, the task is safe. What is to be done: "
        "a command after --, a prompt for an agent, a tool of an MCP server, or one task a line of a file (JSON "
        "objects with the fields of docs/omnictl.md), all of them or none.",
        "[PROMPT|-]",
        (*TASK, *_ONCE),
        (
            "omnictl add -- make -C x",
            "omnictl add 'fix the login bug' --kind programming",
            "omnictl add --after t7 --check 'test -s out.csv' -- ./report out.csv",
            "omnictl add -f tasks.jsonl --label nightly",
        ),
        "COMMAND [ARGUMENTS]",
    )
}
