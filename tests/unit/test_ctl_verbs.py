"""Every verb of omnictl against a daemon that follows a script: what it sends, and what it says."""

import fcntl
import os

import pytest

from omnid import errors
from omnid.api import shapes
from omnid.model import Problem
from tests.fakes.ctl_world import (
    CONTROLLED,
    ENTRY,
    FINDING,
    ID,
    NOW_MS,
    PROBLEM,
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


def test_add_prints_the_name_and_what_comes_next():
    daemon = Daemon(task__submit=SUBMITTED, task__why=WHY)
    ran = Ran("add", "--", "make", "-C", "x", "--json", daemon=daemon)
    assert (ran.code, ran.out, ran.err) == (0, "t7\n", "t7 starts as soon as a slot is free.\n")
    fields = ran.calls[0][1]
    assert fields.pop("key")
    assert fields == {"argv": ["make", "-C", "x", "--json"], "cwd": os.getcwd()}


def test_add_takes_every_field(tmp_path):
    daemon = Daemon(task__submit=SUBMITTED, task__why=WHY)
    words = (
        "add --executor=e --priority -5 --key k --after t1,t2 --not-before +2h --deadline +1d --lane l --timeout 10m "
        "--attempts 4 --backoff 2s --label a --label b --kind programming --assignee me --env HOME --env PATH --stdin"
    )
    more = ["--cwd", str(tmp_path), "--check", "test -s 'a b'", "--reply-to", "chat:home:7", "--reply-session", "s"]
    more += ["--only", "23:00-07:00", "--workspace", "none", "--cost-max", "1.50", "--", "cat"]
    ran = Ran(*words.split(), *more, daemon=daemon, stdin="über")
    assert ran.code == 0, ran.err
    assert ran.calls[0][1] == {
        "argv": ["cat"],
        "executor": "e",
        "priority": -5,
        "key": "k",
        "after": ["t1", "t2"],
        "not_before_ms": NOW_MS + 7_200_000,
        "deadline_ms": NOW_MS + 86_400_000,
        "lane": "l",
        "timeout_s": 600,
        "attempts_max": 4,
        "backoff_s": 2,
        "labels": ["a", "b"],
        "kind": "programming",
        "assignee": "me",
        "env": ["HOME", "PATH"],
        "stdin": "über",
        "cwd": str(tmp_path),
        "check": ["test", "-s", "a b"],
        "reply_to": {"channel": "chat", "target": "home:7", "session": "s"},
        "only": "23:00-07:00",
        "workspace": "none",
        "cost_max_usd": 1.5,
    }


@pytest.mark.parametrize(
    "words", ["--only 25:00-26:00", "--only 23:00", "--only x", "--workspace tree", "--cost-max nan", "--cost-max -1"]
)
def test_add_says_what_an_option_takes(words):
    option, value = words.split()
    ran = Ran("add", option, value, "--", "true")
    assert ran.code == 2
    assert ran.err.startswith(f"omnictl: {option} takes ")
    assert value in ran.err.splitlines()[0]


def test_add_of_a_tool_call_and_a_prompt():
    daemon = Daemon(task__submit=SUBMITTED, task__why=WHY)
    Ran("add", "--server", "s", "--tool", "t", "--arguments", '{"a": [1]}', daemon=daemon)
    Ran("add", "--prompt", "hello", daemon=daemon)
    sent = [fields for name, fields in daemon.calls if name == "task.submit"]
    assert (sent[0]["server"], sent[0]["tool"], sent[0]["arguments"]) == ("s", "t", {"a": [1]})
    assert sent[1]["prompt"] == "hello"


def test_add_says_that_the_key_was_known():
    daemon = Daemon(task__submit=shapes.Submitted(ID, "t7", "completed", created=False), task__why=WHY)
    assert Ran("add", "--key", "k", "--", "x", daemon=daemon).err.startswith("Known by its key, nothing was added.")


def test_add_sends_the_same_once_more_when_the_daemon_is_lost():
    lost = errors.Retryable("daemon_lost", detail="It broke.")
    daemon = Daemon(task__submit=[lost, SUBMITTED], task__why=WHY)
    assert Ran("add", "--", "x", daemon=daemon).code == 0
    assert daemon.calls[0] == daemon.calls[1]
    assert daemon.calls[0][1]["key"]
    assert Ran("add", "--", "x", daemon=Daemon(task__submit=lost)).code == 3


def test_add_has_succeeded_once_the_task_is_safe_whatever_comes_after():
    ran = Ran("add", "--", "x", daemon=Daemon(task__submit=SUBMITTED, task__why=down()))
    assert (ran.code, ran.out) == (0, "t7\n")
    assert ran.err.startswith("It is accepted; what comes next can't be told: No omnid answers")


def test_add_checks_everything_before_it_sends_anything():
    ran = Ran("add", "--wait", "--wait-timeout", "soon", "--", "x")
    assert (ran.code, ran.calls) == (2, [])


def test_add_of_a_file_is_one_batch_with_the_options_as_defaults(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"argv": ["a"], "cwd": "sub", "key": "k"}\n\n{"argv": ["b"], "priority": 9, "after": ["x"]}\n')
    added = shapes.SubmittedBatch([SUBMITTED, shapes.Submitted(ID, "t8", "idle", created=False)])
    for argv, stdin in ((["-f", str(file)], ""), (["-"], file.read_text()), (["-f", "-"], file.read_text())):
        daemon = Daemon(task__submit_batch=added)
        ran = Ran("add", *argv, "--priority", "2", daemon=daemon, stdin=stdin)
        assert (ran.code, ran.out) == (0, "t7\nt8\n")
        assert "2 tasks accepted, 1 of them known by their key" in ran.err
        first, second = daemon.calls[0][1]["tasks"]
        assert first == {"argv": ["a"], "cwd": os.path.abspath("sub"), "key": "k", "priority": 2}
        assert second.pop("key")
        assert second == {"argv": ["b"], "cwd": os.getcwd(), "priority": 9, "after": ["x"]}


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ('{"argv": ["a"]}\n{', 2, "it is no JSON"),
        ("\n[1]\n", 2, "it is no JSON object"),
        ("[" * 100_000, 1, "it is no JSON"),
        ('{"argv": ["a"]}\n{"argv": ["b"], "cost_max_usd": NaN}', 2, "Out of range float values"),
        ('{"argv": ["\\ud83d"]}', 1, "what ends with"),
    ],
)
def test_a_bad_line_of_a_file_is_named_before_anything_is_sent(content, line, says):
    ran = Ran("add", "-", stdin=content)
    assert ran.code == 2
    assert f"Line {line} of - can't be taken: {says}" in ran.err
    assert ran.calls == []


def test_a_line_that_the_daemon_refuses_is_named(tmp_path):
    refusal = errors.Rejected("bad_request", detail="Expected `array` - at `$.tasks[1].argv`", where="tasks[1].argv")
    ran = Ran("add", "-", stdin='{"argv":["a"]}\n\n\n{"argv":["b"]}', daemon=Daemon(task__submit_batch=refusal))
    assert "Line 4 of - can't be taken" in ran.err
    other = Daemon(task__submit_batch=errors.Rejected("dependency_cycle", cycle="a, b"))
    assert "These tasks wait for each other" in Ran("add", "-", stdin='{"argv":["a"]}', daemon=other).err


def test_add_in_a_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    ran = Ran("add", "--", "x")
    assert ran.code == 1
    assert ran.err.startswith("omnictl: The directory . can't be used.\n")


def test_add_refuses_input_that_is_no_text(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_bytes(b"\xff")
    ran = Ran("add", "-f", str(file))
    assert ran.code == 2
    assert "it is not UTF-8 text" in ran.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["add"], "It needs something to do"),
        (["add", "--"], "There is nothing after --"),
        (["add", "-f", "x", "--", "make"], "not both"),
        (["add", "-f", "/nowhere/x"], "/nowhere/x can't be read: No such file"),
        (["add", "-f", "/dev/null"], "there is no task in it"),
        (["add", "--wait-timeout", "5s", "--", "x"], "--wait-timeout needs --wait"),
        (["add", "-", "--stdin"], "--stdin and --key are for one task"),
        (["pause", "t7", "--executor", "x"], "not both"),
        (["priority", "t7", "high"], "takes a whole number, not 'high'"),
        (["resolve", "t7"], "exactly one of --done, --again and --fail"),
        (["resolve", "t7", "--done", "--fail"], "exactly one of"),
        (["assign", "t7"], "It takes --executor or --assignee"),
        (["rm", "t7"], "it needs --yes"),
        (["replay"], "It needs --until"),
        (["config", "edit"], "it is check, show or reload"),
        (["wait", "t7", "--timeout", "soon"], "soon is not a time"),
        (["list", "--since", "soon"], "soon is not a time"),
        (["--json", "list"], "An option stands after the verb"),
        (["lisst"], "There is no verb lisst (did you mean list?)"),
        (["help", "lisst"], "There is no verb lisst"),
    ],
)
def test_wrong_usage_says_what_why_and_what_to_do(argv, says):
    ran = Ran(*argv)
    what, why, do = ran.err.splitlines()
    assert ran.code == 2
    assert says in what
    assert (what[:9], why[:7], do[:7]) == ("omnictl: ", "  why: ", "  do:  ")
    assert (ran.out, ran.calls) == ("", [])


def test_list_filters_and_pages():
    daemon = Daemon(task__list=[shapes.Page([brief()], "c2"), shapes.Page([brief(name="t6")], None)])
    words = (
        "list --state failed,idle --label a --label b --executor e --origin o --lane l --text x --since 2h --limit 5"
    )
    ran = Ran(*words.split(), "--cursor", "c1", "--all", daemon=daemon)
    assert daemon.calls[0][1] == {
        "states": ["failed", "idle"],
        "labels": ["a", "b"],
        "executor": "e",
        "origin": "o",
        "lane": "l",
        "text": "x",
        "since_ms": NOW_MS - 7_200_000,
        "limit": 5,
        "cursor": "c1",
    }
    assert daemon.calls[1][1]["cursor"] == "c2"
    assert "t7" in ran.out
    assert "t6" in ran.out
    page = Ran("list", daemon=Daemon(task__list=shapes.Page([brief()], "c2")))
    assert "--cursor c2" in page.err
    assert Ran("list", daemon=Daemon(task__list=shapes.Page([], None))).err == "No tasks.\n"


def test_list_says_when_and_why():
    tasks = [
        brief(),
        brief(name="t8", state="waiting", reason="backoff", wake_at_ms=NOW_MS + 480_000),
        brief(name="t9", state="idle", reason="cloud", started_at_ms=None),
        brief(name="t10", state="failed", finished_at_ms=NOW_MS - 3_600_000),
    ]
    lines = Ran("list", daemon=Daemon(task__list=shapes.Page(tasks, None))).out.splitlines()
    for line, words in zip(
        lines[1:],
        (
            ("t7", "executing", "for 3 min"),
            ("t8", "waiting: backoff", "in 8 min"),
            ("t9", "waiting: cloud", "3 min ago"),
            ("t10", "failed", "1 h ago"),
        ),
        strict=True,
    ):
        assert all(word in line for word in words)


def test_show_tells_everything():
    shown = view(
        brief(
            state="failed",
            finished_at_ms=NOW_MS - 60_000,
            problem=PROBLEM,
            labels=("nightly",),
            priority=5,
            lane="repo",
        ),
        attempts=[attempt(), attempt(number=2, output="x\n" * 40, output_bytes=99_999, value={"n": 1}, cost_usd=0.5)],
        attempts_total=2,
        key="k",
        parent="t0",
        work={"argv": ["make", "-C", "x y"], "cwd": "/work", "reply_to": {"chat": 5}},
        after=["t1"],
        deadline_ms=NOW_MS + 60_000,
    )
    out = Ran("show", "t7", daemon=Daemon(task__get=shown)).out
    for text in (
        "make -C 'x y'",
        "/work",
        "nightly",
        "repo",
        "t1",
        "in 1 min",
        "parent       t0",
        'reply to     {"chat":5}',
        ID,
        PROBLEM.what,
        PROBLEM.why,
        PROBLEM.do,
        "exit code 2",
        "after 2 min",
        "100 kB of output",
        '{"n":1}',
        "$0.50",
        "omnictl logs t7",
    ):
        assert text in out
    assert out.count("│ x") == 12


def test_status_is_one_screen():
    gate = shapes.GateView(
        "executor:e", "executor", "e", NOW_MS - 60_000, NOW_MS + 120_000, PROBLEM, "executor e is down."
    )
    now = status(
        tasks={"executing": 1, "idle": 1, "waiting": 2, "completed": 5},
        running=1,
        gates=[gate],
        next_wake_at_ms=NOW_MS + 5000,
        needs_you=[shapes.NeedsYou("t9", "make deploy", "approval", "omnictl approve t9")],
        needs_you_total=3,
        problems=[Problem("disk_full", "The disk is full: nothing was written.", "ENOSPC.", "Free some space.")],
        config_problem=PROBLEM,
    )
    waiting = [brief(state="waiting", reason="backoff"), brief(state="waiting", reason="backoff"), brief(state="idle")]
    daemon = Daemon(status=now, task__list=[shapes.Page([brief()], None), shapes.Page(waiting, None)])
    out = Ran("status", daemon=daemon).out
    for text in (
        "up 2 h 5 min",
        "1 of 4 slots",
        "t7  for 3 min  command  make -C x",
        "3: 2 backoff, 1 ready; next try in 5 s",
        "5 completed",
        "executor: e, closed 1 min ago, next try in 2 min",
        "omnictl approve t9",
        "and 2 more",
        "Needs you (4)",
        "!  The disk is full: nothing was written.",
        "Free some space.",
        "free, /",
        "not taken over",
    ):
        assert text in out
    assert len(out.splitlines()) <= 26
    many = Daemon(status=status(tasks={"idle": 1_000_000}))
    assert "1000000: 1000000 idle" in Ran("status", daemon=many).out
    assert len(many.calls) == 1


def test_logs_up_to_now_and_to_the_end():
    parts = [
        shapes.LogPart("one\r\n\x1b[1mtwo", 12, 1, ended=False),
        shapes.LogPart("", 12, 1, ended=False),
    ]
    ran = Ran("logs", "t7", daemon=Daemon(task__log=parts))
    assert ran.out == "one\n\\x1b[1mtwo\n"
    daemon = Daemon(
        task__log=[*parts, shapes.LogPart("end\n", 16, 1, ended=True), shapes.LogPart("again\n", 6, 2, ended=True)],
        task__get=[view(brief(attempt=2)), ended()],
    )
    ran = Ran("logs", "t7", "-f", daemon=daemon)
    assert ran.out == "one\n\\x1b[1mtwoend\nagain\n"
    logs = [params for name, params in ran.calls if name == "task.log"]
    assert [(params.get("attempt"), params["offset_bytes"]) for params in logs] == [(None, 0), (1, 12), (1, 12), (2, 0)]
    one = Ran("logs", "t7", "-f", "--attempt", "1", daemon=Daemon(task__log=shapes.LogPart("x\n", 2, 1, ended=True)))
    assert one.out == "x\n"
    none = Ran("logs", "t7", daemon=Daemon(task__log=shapes.LogPart("", 0, 0, ended=True)))
    assert (none.out, none.err) == ("", "t7 has not been started yet; `omnictl why t7` says why.\n")


@pytest.mark.parametrize(
    ("argv", "sent"),
    [
        ("cancel t7", {"action": "cancel"}),
        ("retry t7", {"action": "retry"}),
        ("pause t7", {"action": "pause"}),
        ("resume t7", {"action": "resume"}),
        ("priority t7 -5", {"action": "priority", "priority": -5}),
        ("resolve t7 --done --output fine", {"action": "done", "output": "fine"}),
        ("resolve t7 --again", {"action": "again"}),
        ("resolve t7 --fail", {"action": "fail"}),
        ("complete t7 --output fine", {"action": "complete", "output": "fine"}),
        ("assign t7 --executor e", {"action": "assign", "executor": "e"}),
        ("assign t7 --assignee me", {"action": "assign", "assignee": "me"}),
        ("rm t7 --yes", {"action": "delete"}),
    ],
)
def test_control(argv, sent):
    ran = Ran(*argv.split(), daemon=Daemon(task__control=CONTROLLED))
    assert (ran.code, ran.out) == (0, "t7  t7 was cancelled.\n")
    assert ran.calls == [("task.control", {"task": "t7", **sent})]


def test_control_of_several_goes_on_after_a_refusal():
    refused = errors.Rejected("unknown_task", task="t8", hint="")
    ran = Ran("cancel", "t7", "t8", "t9", daemon=Daemon(task__control=[CONTROLLED, refused, CONTROLLED]))
    assert ran.code == 1
    assert len(ran.calls) == 3
    assert "t8: There is no task t8" in ran.err
    assert Ran("cancel", "t7", "t8", daemon=Daemon(task__control=[CONTROLLED, down()])).code == 3


def test_pause_and_resume_of_everything_and_of_an_executor():
    for verb in ("pause", "resume"):
        daemon = Daemon(**{f"gate__{verb}": shapes.Gates([])})
        assert "everything is" in Ran(verb, daemon=daemon).out
        assert "executor e is" in Ran(verb, "--executor", "e", daemon=daemon).out
        assert [params for _, params in daemon.calls] == [{"executor": "*"}, {"executor": "e"}]


@pytest.mark.parametrize(("verb", "action"), [("approve", "approve"), ("deny", "deny")])
def test_approval_shows_first_and_asks_at_a_terminal(verb, action):
    script = {"task__get": view(brief(origin="agent")), "task__control": CONTROLLED}
    ran = Ran(verb, "t7", "--always", daemon=Daemon(**script))
    assert ran.calls[-1] == ("task.control", {"task": "t7", "action": action, "always": True})
    assert ran.out.index("make -C 'x y'") < ran.out.index("/work") < ran.out.index("was cancelled")
    no = Ran(verb, "t7", daemon=Daemon(**script), terminal=True, stdin="\n")
    assert no.code == 1
    assert [name for name, _ in no.calls] == ["task.get"]
    assert Ran(verb, "t7", daemon=Daemon(**script), terminal=True, stdin="y\n").code == 0


def test_rm_asks_at_a_terminal():
    daemon = Daemon(task__control=CONTROLLED)
    assert Ran("rm", "t7", daemon=daemon, terminal=True, stdin="n\n").code == 1
    assert daemon.calls == []
    assert Ran("rm", "t7", daemon=daemon, terminal=True, stdin="yes\n").code == 0


def test_operations_and_replay():
    daemon = Daemon(operations=[shapes.OperationsPage([ENTRY], 5), shapes.OperationsPage([ENTRY], None)])
    ran = Ran("operations", "--since", "4", "--task", "t7", "--all", daemon=daemon)
    assert [params for _, params in ran.calls] == [
        {"since": 4, "task": "t7", "limit": 1000},
        {"since": 5, "task": "t7", "limit": 1000},
    ]
    assert 'state="idle"' in ran.out
    page = Ran("operations", "--since", "2h", daemon=Daemon(operations=shapes.OperationsPage([ENTRY], 5)))
    assert page.calls[0][1] == {"since_ms": NOW_MS - 7_200_000}
    assert "--since 5" in page.err
    replayed = shapes.Replayed(5, NOW_MS, {"idle": 1}, [brief(state="idle")])
    for until, params in (("5", {"until_seq": 5}), ("2h", {"until_ms": NOW_MS - 7_200_000})):
        ran = Ran("replay", "--until", until, daemon=Daemon(replay=replayed))
        assert ran.calls == [("replay", params)]
        assert "After seq 5" in ran.out
        assert "t7" in ran.out


def test_doctor_and_config():
    assert Ran("doctor", daemon=Daemon(doctor=shapes.Doctor(True, [FINDING]))).code == 0
    bad = shapes.Finding("disk", ok=False, detail="it is full", do="Free some space.")
    ran = Ran("doctor", daemon=Daemon(doctor=shapes.Doctor(False, [FINDING, bad])))
    assert (ran.code, ran.out) == (
        1,
        "ok  log and tables: 12 changes add up\n!!  disk: it is full\n    do: Free some space.\n",
    )
    shown = shapes.ConfigShown("/c", [shapes.ConfigRow("daemon.slots_max", 4, "file")])
    assert "daemon.slots_max  file  4" in Ran("config", "show", daemon=Daemon(config__show=shown)).out
    assert "nothing is wrong" in Ran("config", "check", daemon=Daemon(config__check=shapes.ConfigChecked("/c", []))).out
    reloaded = shapes.ConfigChecked("/c", [], reloaded=True)
    assert "taken over" in Ran("config", "reload", daemon=Daemon(config__reload=reloaded)).out
    refused = Ran("config", "reload", daemon=Daemon(config__reload=shapes.ConfigChecked("/c", [PROBLEM])))
    assert refused.code == 1
    assert all(sentence in refused.out for sentence in (PROBLEM.what, PROBLEM.why, PROBLEM.do))


def test_down_waits_for_the_lock_and_tells_what_goes_on(tmp_path):
    daemon = Daemon(status=status(state_dir=str(tmp_path)), daemon__stop=shapes.Stopping(42, 2))
    ran = Ran("down", daemon=daemon)
    assert (ran.code, ran.out) == (0, "omnid (pid 42) has stopped; 2 running tasks go on without it.\n")
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = Ran("down", "--timeout", "100ms", daemon=daemon)
    assert ran.code == 1
    assert "The daemon 42 still runs after 0.1 s." in ran.err


def test_version_and_help():
    assert "omnid   0.1.0 (pid 42)" in Ran("version", daemon=Daemon(status=status())).out
    assert "omnid   not running" in Ran("version", daemon=Daemon(status=down())).out
    assert Ran("--version").out == "omnictl 0.1.0\n"
    assert Ran("help").out == Ran("--help").out == Ran().err
    assert (Ran("help").code, Ran().code) == (0, 2)
    assert Ran("help", "wait").out == Ran("wait", "-h").out
