"""What holds for every verb of omnictl: JSON, exit codes, hostile text, faults."""

import os
import signal
import socket
import subprocess
import sys

import msgspec
import pytest
from msgspec.structs import replace

from omnid import errors
from omnid.api import shapes, shapes_mode, shapes_outbox, shapes_schedules
from omnid.api import shapes_workspaces as places
from omnid.ctl.main import EXIT_CODES, TABLE
from omnid.ctl.render import width
from omnid.messages import CATALOGUE
from omnid.states import STATES
from tests.fakes.ctl_world import (
    ASKED,
    AWAY,
    CHECKED,
    CONTROLLED,
    DECIDED,
    ENTRY,
    FINDING,
    LINKS,
    MODE,
    NOW_MS,
    OUTAGE,
    PLACE,
    QUESTION,
    RECEIPT,
    REHEARSED,
    RUNNERS,
    SPENT,
    SUBMITTED,
    WHY,
    Daemon,
    Ran,
    attempt,
    brief,
    down,
    ended,
    status,
    view,
)

HOSTILE = "\x1b[2J\x07\u202eevil\r\n\ud800"

EVERY = {
    "add -- x": {"task__submit": SUBMITTED},
    "list": {"task__list": shapes.Page([brief()], None)},
    "show t7": {"task__get": view(attempts=[attempt()], attempts_total=1, questions=[QUESTION])},
    "why t7": {"task__why": WHY},
    "away": {"away": AWAY},
    "receipt t7": {"task__receipt": RECEIPT},
    "status": {"status": status()},
    "route --dry-run x": {"route__explain": DECIDED},
    "logs t7": {"task__log": shapes.LogPart("x", 1, 1, ended=True)},
    "wait t7": {"task__get": ended()},
    **{f"{verb} t7": {"task__control": CONTROLLED} for verb in ("cancel", "retry", "pause", "resume", "complete")},
    **{f"{verb} t7": {"task__control": CONTROLLED, "task__get": view()} for verb in ("approve", "deny")},
    "priority t7 1": {"task__control": CONTROLLED},
    "resolve t7 --done": {"task__control": CONTROLLED},
    "assign t7 --assignee me": {"task__control": CONTROLLED},
    "rm t7 --yes": {"task__control": CONTROLLED},
    "reply t7 1": {"task__control": CONTROLLED},
    "answer t7": {"task__get": view(questions=[QUESTION])},
    "schedule": {"schedule__list": shapes_schedules.SchedulePage([], None)},
    "run nightly": {"schedule__run": SUBMITTED, "task__why": WHY},
    "dead": {"dead__list": shapes_outbox.DeadPage([], None)},
    "budget t7 2.5": {"task__control": CONTROLLED},
    "spend": {"spend": SPENT},
    "pause": {"gate__pause": shapes.Gates([])},
    "runners": {"runner__list": RUNNERS},
    "links": {"link__list": LINKS},
    "diff t7": {"workspace__diff": places.DiffPart("+x", "0" * 40, None, PLACE)},
    "merge t7": {"workspace__merge": places.WorkspaceMerged("t7", "/r", "main", "omnid/t7-0", 2, ["a"], True, [])},
    "workspaces": {"workspace__list": places.WorkspaceList([PLACE], 9, 50, 99)},
    "workspaces rm t7 --yes": {"workspace__remove": places.WorkspaceRemoved(PLACE)},
    "mode": {"mode__show": MODE},
    "mode hold auto": {"mode__hold": MODE},
    "ask how is it": {"state__ask": ASKED},
    "model preload": {"model__rehearse": REHEARSED},
    "outages": {"outage__list": shapes_mode.Outages([OUTAGE], NOW_MS)},
    "operations": {"operations": shapes.OperationsPage([ENTRY], None)},
    "replay --until 5": {"replay": shapes.Replayed(5, NOW_MS, {"idle": 1}, [brief()])},
    "doctor": {"doctor": shapes.Doctor(True, [FINDING])},
    "config show": {"config__show": shapes.ConfigShown("/c", [])},
    "config check": {"config__check": shapes.ConfigChecked("/c", [])},
    "version": {"status": status()},
    "down": {"status": status(state_dir="/nowhere"), "daemon__stop": shapes.Stopping(42, 0)},
}


def test_config_check_live_shows_every_key_and_fails_where_one_is_not_well():
    answers = {
        "config__check": shapes.ConfigChecked("/c", []),
        "channel__check": shapes_mode.ChannelsChecked([CHECKED, replace(CHECKED, ok=True)]),
        "executor__check": shapes.Doctor(True, [FINDING]),
    }
    ran = Ran("config", "check", "--live", daemon=Daemon(**answers))
    assert ran.code == 1
    assert "it refuses. Look at it." in ran.out
    assert f"{FINDING.name}: {FINDING.detail}" in ran.out
    ran = Ran("config", "--json", "check", "--live", daemon=Daemon(**answers))
    assert (ran.code, len(ran.json["result"]["channels"]), len(ran.json["result"]["executors"])) == (1, 2, 1)
    answers["channel__check"] = shapes_mode.ChannelsChecked([])
    assert Ran("config", "check", "--live", daemon=Daemon(**answers)).code == 0
    answers["executor__check"] = shapes.Doctor(False, [replace(FINDING, ok=False)])
    assert Ran("config", "check", "--live", daemon=Daemon(**answers)).code == 1
    assert Ran("config", "show", "--live", daemon=Daemon()).code == 2


def test_the_mode_says_what_is_wrong_with_a_channel():
    ran = Ran("mode", daemon=Daemon(mode__show=MODE))
    assert "held at normal" in ran.out
    assert "2 failures in a row to reach it" in ran.out
    assert "env:B is refused: no such key" in ran.out
    assert "first text after 1.5 s" in ran.out
    assert "asleep: it needs more memory; the last one returned 4.5 GB" in ran.out
    assert "12 MB of" in ran.out
    assert "/state/snapshots/journal-1.db; The journal has no snapshot" in " ".join(ran.out.split())
    assert Ran("mode", "hold", "sometimes", daemon=Daemon()).code == 2


def test_the_mode_says_when_the_cloud_is_probed_again():
    gone = replace(MODE, mode="brainstem", why="none of the channels answers", cloud_gone=True)
    ahead = Ran("mode", daemon=Daemon(mode__show=replace(gone, probe_at_ms=MODE.now_ms + 12_000)))
    assert "none of the channels answers; the cloud is probed again in 12 s" in " ".join(ahead.out.split())
    late = Ran("mode", daemon=Daemon(mode__show=replace(gone, probe_at_ms=MODE.now_ms - 1)))
    assert "the cloud is being probed" in " ".join(late.out.split())
    assert "probed" not in Ran("mode", daemon=Daemon(mode__show=MODE)).out


def with_json(line):
    words = line.split()
    return [words[0], "--json", *words[1:]]


def test_every_verb_is_here():
    assert {line.split()[0] for line in EVERY} == TABLE.keys() - {"up", "demo", "help"}


@pytest.mark.parametrize("line", EVERY)
def test_json_is_one_envelope_and_nothing_else(line):
    ran = Ran(*with_json(line), daemon=Daemon(**EVERY[line]), terminal=True)
    assert ran.code == 0, ran.err
    assert ran.json.keys() == {"v", "result"}
    assert ran.json["v"] == 1
    assert ran.err == ""


ALONE = {"version", "config check", "config show"}
"""What is answered without a daemon too."""


@pytest.mark.parametrize("line", [line for line in EVERY if line not in ALONE])
def test_without_a_daemon_every_verb_says_so(line):
    nobody = Daemon(**dict.fromkeys(EVERY[line], down()))
    ran = Ran(*line.split(), daemon=nobody)
    assert ran.code == 3
    assert ran.err.splitlines()[0] == "omnictl: No omnid answers at /s."
    ran = Ran(*with_json(line), daemon=nobody)
    assert (ran.code, ran.json["error"]["code"], ran.json["v"]) == (3, "daemon_down", 1)


def poisoned(value):
    """The same with every text of the task's or the executor's made hostile."""
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        # The daemon's own words, which no task has a say in.
        own = {name: fields.pop(name) for name in ("version", "mode") if name in fields}
        return type(value)(**own, **{name: poisoned(field) for name, field in fields.items()})
    if isinstance(value, list | tuple):
        return type(value)(poisoned(item) for item in value)
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return value + HOSTILE if isinstance(value, str) and value not in STATES else value


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("line", [line for line in EVERY if line != "down"])
def test_hostile_text_reaches_no_terminal(line, terminal):
    script = {name: poisoned(answer) for name, answer in EVERY[line].items()}
    script.setdefault("task__why", poisoned(WHY))
    ran = Ran(*line.split(), daemon=Daemon(**script), terminal=terminal, stdin="y\n", environ={"NO_COLOR": "1"})
    assert ran.code in (0, 1), ran.err
    for text in (ran.out, ran.err.replace("\r\x1b[K", "")):
        assert not set(text) & set("\x1b\x07\r\u202e\ud800")
    assert all(width(part) <= 80 for part in ran.out.splitlines())
    refusal = errors.Rejected("unknown_task", task=HOSTILE, hint="")
    assert not set(Ran("show", "x", daemon=Daemon(task__get=refusal)).err) & set("\x1b\x07\r\u202e\ud800")


@pytest.mark.parametrize("code", EXIT_CODES)
def test_exit_codes_belong_to_known_errors(code):
    assert code in CATALOGUE


def test_a_fault_inside_is_no_traceback_unless_asked_for():
    broken = Daemon(status=RuntimeError("oops"))
    ran = Ran("status", daemon=broken)
    assert ran.code == 1
    assert ran.err.startswith("omnictl: omnictl failed inside: RuntimeError: oops.\n")
    assert "OMNICTL_DEBUG=1" in ran.err
    with pytest.raises(RuntimeError):
        Ran("status", daemon=broken, environ={"OMNICTL_DEBUG": "1"})


def test_an_interrupt_is_quiet():
    ran = Ran("wait", "t7", daemon=Daemon(task__get=[view(), KeyboardInterrupt()]), terminal=True)
    assert ran.code == 130
    assert ran.err.endswith("\r\x1b[K")
    assert "Traceback" not in ran.err


OMNICTL = [sys.executable, "-c", "import sys; from omnid.ctl.main import main; sys.exit(main())"]


@pytest.mark.parametrize(("streams", "code"), [("> /dev/full", 1), (">&-", 0), ("2>&-", 0), ("<&-", 0)])
def test_streams_that_are_closed_or_full_bring_no_traceback(streams, code):
    argv = ["sh", "-c", f'exec "$@" {streams}', "sh", *OMNICTL, "help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code
    says = "omnictl: The output can't be written: No space left on device."
    assert done.stderr.splitlines()[:1] == ([says] if code else [])


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run([*OMNICTL, "help"], stdout=gone, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_of_the_process_is_quiet(tmp_path):
    """Ctrl-C while it waits for an answer that doesn't come."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        waiting = subprocess.Popen(
            [*OMNICTL, "status"],
            env={**os.environ, "OMNID_SOCKET": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection = listener.accept()[0]
        connection.recv(1)
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=30) == (b"", b"")
        connection.close()
    assert waiting.returncode == 130
