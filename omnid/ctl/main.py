"""``omnictl``: finds the verb, runs it, and turns whatever happens into an exit code and, if need be, three lines."""

import os
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Literal, TextIO, cast

from omnid import __version__
from omnid.ctl.context import Caller, Context, World
from omnid.ctl.options import Given, Verb, nearest, parse, usage
from omnid.errors import OmnidError, Rejected, Retryable

EXIT_FAILED, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 130, 141
EXIT_CODES = {
    "bad_usage": 2,
    "bad_time": 2,
    "bad_request": 2,
    "bad_schedule": 2,
    "bad_file": 2,
    "bad_line": 2,
    "daemon_down": 3,
    "daemon_unheard": 3,
    "daemon_lost": 3,
    "daemon_no_start": 3,
    "secret_missing": 4,
}
"""Exit codes of errors that aren't just `EXIT_FAILED`."""

TABLE: dict[str, tuple[str, str]] = {
    "add": ("add", "Submit a task: a command, a tool call, or a file of tasks"),
    "list": ("list", "List tasks, filtered"),
    "show": ("show", "Show everything about a task"),
    "why": ("show", "Say in one sentence what happened to a task, and what comes next"),
    "route": ("route", "Show which executor a task would go to, and the rules for it"),
    "status": ("status", "Show how omnid is doing, and what needs you"),
    "away": ("night", "Say what happened while you were away"),
    "receipt": ("night", "Show a task's way, its cost, and a hash over its journal"),
    "mode": ("mode", "Show what omnid can reach, and each channel; or hold the mode"),
    "outages": ("mode", "Show what could not be used, from when to when"),
    "ask": ("ask", "Ask about omnid's own state, in your own words"),
    "model": ("model", "List, fetch, verify or try the model for when the cloud is gone"),
    "schedule": ("schedule", "Have tasks submitted at times or on events; list, switch and remove that"),
    "run": ("schedule", "Run the task of a schedule or preset now"),
    "logs": ("logs", "Show what a task printed, or follow it"),
    "wait": ("wait", "Wait until tasks have ended"),
    "cancel": ("control", "Cancel tasks"),
    "retry": ("control", "Run failed or cancelled tasks again"),
    "pause": ("control", "Hold back tasks, an executor, or everything"),
    "resume": ("control", "Let go on what was paused"),
    "priority": ("control", "Change the priority of a task"),
    "resolve": ("control", "Decide what becomes of an uncertain task"),
    "complete": ("control", "Finish a task by hand"),
    "assign": ("control", "Give a task to another executor, or to somebody"),
    "spend": ("spend", "Show what was spent, and the caps"),
    "budget": ("spend", "Set the most that a task may cost"),
    "rm": ("control", "Delete tasks"),
    "approve": ("approval", "Let a task of an agent run"),
    "deny": ("approval", "Refuse a task of an agent"),
    "answer": ("answer", "Answer what a running task asks, or show the question"),
    "reply": ("dead", "Answer a message about a task: 1 approve, 2 again, 3 drop"),
    "dead": ("dead", "Show what could not be delivered, try it again, or drop it"),
    "diff": ("workspace", "Show what a task has changed in its workspace"),
    "merge": ("workspace", "Take over what a task has changed, into the branch that is checked out"),
    "workspaces": ("workspace", "List where agents work, or remove such a place"),
    "runners": ("runners", "Show the runners on other hosts"),
    "operations": ("history", "Show the log of all changes"),
    "replay": ("history", "Show the state as it was at a time, read-only"),
    "doctor": ("doctor", "Check the journal, the executors and the disk"),
    "config": ("config", "Check, show or reload the config"),
    "up": ("daemon", "Start the daemon in the background"),
    "down": ("daemon", "Stop the daemon; running commands go on"),
    "demo": ("demo", "See omnid lose nothing, with a throw-away daemon"),
    "version": ("daemon", "Show the versions of omnictl and the daemon"),
    "help": ("", "Explain a verb"),
}
"""Verb -> the module in `omnid.ctl.commands` that has it in its ``VERBS``, and its line in the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``omnictl`` with the real world around it and gives its exit code."""
    stdin, stdout, stderr = _stream(sys.stdin, "r"), _stream(sys.stdout, "w"), _stream(sys.stderr, "w")
    world = World(os.environ, stdin, stdout, stderr, _connect, _now_ms, time.monotonic, time.sleep)
    return run(sys.argv[1:] if argv is None else argv, world)


def run(argv: Sequence[str], world: World) -> int:
    """Runs one command line and gives its exit code; no error leaves it, save a fault when ``OMNICTL_DEBUG`` is set."""
    try:
        code = _dispatch(argv, world)
        world.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        # All others are mapped where they enter, so this is the output's. Nothing more can be written there, not even
        # by the interpreter's own flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), world.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader has gone (`| head`), which is its right.
            return EXIT_BROKEN_PIPE
        return _fail(Retryable("output_failed", detail=error.strerror), Given(""), world)
    return code


def _dispatch(argv: Sequence[str], world: World) -> int:
    name = argv[0] if argv else ""
    given = Given(name)
    try:
        if name in ("", "help", "-h", "--help"):
            return _help(argv, world)
        if name in ("--version", "-V"):
            world.stdout.write(f"omnictl {__version__}\n")
            return 0
        verb = load(name)
        # JSON is wanted even for the complaint that the rest can't be read.
        given.values = {"json": [""]} if "--json" in argv[: argv.index("--") if "--" in argv else None] else {}
        given = parse(name, verb, argv[1:])
        if given.flag("help"):
            return _help(["help", name], world)
        return verb.run(Context(given, world))
    except OmnidError as error:
        return _fail(error, given, world)
    except OSError:
        raise
    except Exception as fault:
        if world.environ.get("OMNICTL_DEBUG"):
            raise
        return _fail(Retryable("ctl_fault", detail=f"{type(fault).__name__}: {fault}"), given, world)


def load(name: str) -> Verb:
    """Imports the verb's module and gives the verb; raises Rejected(`bad_usage`) where there is none of that name."""
    if name not in TABLE:
        what = "An option stands after the verb" if name.startswith("-") else f"There is no verb {name}"
        raise Rejected("bad_usage", detail=what + nearest(name, TABLE), verb="VERB", help="help")
    # `importlib` would do the same, and bring more with it than all of the verb's module.
    module = __import__(f"omnid.ctl.commands.{TABLE[name][0]}", fromlist=["VERBS"])
    verb: Verb = module.VERBS[name]
    return verb


def explain(error: OmnidError) -> list[str]:
    """Gives the three lines of an error."""
    return [f"omnictl: {error.what}", f"  why: {error.why}", f"  do:  {error.do}"]


def _fail(error: OmnidError, given: Given, world: World) -> int:
    context = Context(given, world)
    if context.json:
        context.give_error(error)
    else:
        for line in explain(error):
            context.screen.tell(line)
    return EXIT_CODES.get(error.code, EXIT_FAILED)


def _help(argv: Sequence[str], world: World) -> int:
    names = [name for name in argv[1:] if not name.startswith("-")]
    if names and names[0] != "help":
        world.stdout.write("\n".join(usage(names[0], load(names[0]))) + "\n")
        return 0
    lines = ["Usage: omnictl VERB [OPTIONS] [ARGUMENTS]", ""]
    lines += [f"  {name:<11}{about}" for name, (_, about) in TABLE.items()]
    lines += ["", "`omnictl help VERB` explains one. Every verb takes --json."]
    (world.stdout if argv else world.stderr).write("\n".join(lines) + "\n")
    return 0 if argv else EXIT_CODES["bad_usage"]


def _connect() -> Caller:
    from omnid.api.client import Client

    return Client()


def _now_ms() -> int:
    # `omnid.clock` would bring `random` and `uuid` along, which cost more than all the rest of `omnictl`.
    return time.time_ns() // 1_000_000


def _stream(stream: TextIO | None, mode: Literal["r", "w"]) -> TextIO:
    """Prepares a standard stream; one that the caller has closed becomes an empty one."""
    if stream is None:
        return open(os.devnull, mode, encoding="utf-8")
    if mode == "w":
        # A terminal that can't show a character gets its escape and not a traceback.
        cast(TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    return stream
