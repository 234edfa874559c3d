"""Starting the daemon detached: once, whoever asks; out of reach of its starter; and said so when it fails."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omnid import errors
from omnid.api import spawn

DAEMON = """
import os, signal, socket, sys, time
state = os.environ["OMNID_STATE"]
with open(state + "/starts", "a") as file:
    file.write(f"{os.getpid()} {os.getsid(0)} {os.getppid()} {os.getcwd()} {os.environ.get('OMNID_ATTEMPT')}\\n")
print("starting", flush=True)
if os.environ.get("FAIL"):
    sys.exit(os.environ["FAIL"])
if os.environ.get("HANG"):
    time.sleep(60)
listener = socket.socket(socket.AF_UNIX)
time.sleep(0.2)
listener.bind(state + "/omnid.sock")
listener.listen(64)
signal.alarm(60)
signal.pause()
"""

STARTER = """
import os, sys
from omnid.api import spawn
spawn._argv = lambda: [sys.executable, "-c", os.environ["DAEMON"]]
print(spawn.start_daemon(os.environ))
"""


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """An environment with a state directory; what was started there is ended."""
    monkeypatch.setattr(spawn, "_argv", lambda: [sys.executable, "-c", DAEMON])
    state = tmp_path / "state"
    yield {**os.environ, "OMNID_STATE": str(state), "OMNID_ATTEMPT": "a", "DAEMON": DAEMON}
    for line in starts(state):
        try:
            os.kill(int(line[0]), signal.SIGKILL)
        except ProcessLookupError:
            continue


def starts(state):
    path = Path(state) / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_it_is_started_once_and_belongs_to_nobody(environ):
    state = Path(environ["OMNID_STATE"])
    assert spawn.start_daemon(environ) is True
    assert spawn.answers(str(state / "omnid.sock"))
    assert spawn.start_daemon(environ) is False
    ((pid, session, parent, cwd, attempt),) = starts(state)
    assert session not in (str(os.getsid(0)), pid)
    assert parent != str(os.getpid())
    assert (cwd, attempt) == ("/", "None")
    assert (state / "start.log").read_text() == "starting\n"
    assert state.stat().st_mode & 0o777 == 0o700


def test_it_inherits_nothing_but_its_own_output(environ):
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        spawn.start_daemon(environ)
        os.close(writer)
        # A writing end that lived on in the daemon would keep the end of file away.
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_of_ten_at_once_one_starts_it(environ):
    starters = [
        subprocess.Popen([sys.executable, "-c", STARTER], env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    said = [starter.communicate(timeout=60)[0].strip() for starter in starters]
    assert sorted(said) == ["False"] * 9 + ["True"]
    assert len(starts(environ["OMNID_STATE"])) == 1


def test_one_that_ends_at_once_is_reported_with_its_last_words(environ):
    before_s = time.monotonic()
    with pytest.raises(errors.Retryable) as caught:
        spawn.start_daemon({**environ, "FAIL": "no, thank you"})
    assert time.monotonic() - before_s < 20
    assert caught.value.code == "daemon_no_start"
    assert "it ended at once" in caught.value.what
    assert caught.value.why.endswith("start.log): starting / no, thank you")


def test_one_that_ends_with_an_error_is_reported_in_its_words(environ):
    said = errors.Rejected("state_unwritable", path="/a/b", detail="File exists")
    with pytest.raises(errors.Retryable) as caught:
        spawn.start_daemon({**environ, "FAIL": f"omnid: {said.what}\n  why: {said.why}\n  do:  {said.do}"})
    assert caught.value.what == f"The daemon did not start: {said.what}"
    assert (caught.value.why, caught.value.do) == (said.why, said.do)


def test_one_that_does_not_answer_is_not_waited_for_longer_than_asked(environ):
    with pytest.raises(errors.Retryable) as caught:
        spawn.start_daemon({**environ, "HANG": "1"}, deadline_s=1.0)
    assert "doesn't answer in time" in caught.value.what


def test_the_start_of_another_is_not_waited_for_longer_than_asked(environ):
    state = Path(environ["OMNID_STATE"])
    state.mkdir(mode=0o700)
    with open(state / "start.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(errors.Retryable) as caught:
            spawn.start_daemon(environ, deadline_s=0.2)
    assert "another process is starting it" in caught.value.what
    assert starts(state) == []


def test_no_place_for_its_files_is_reported(environ):
    with pytest.raises(errors.Rejected) as caught:
        spawn.start_daemon({**environ, "OMNID_STATE": "/dev/null/state"})
    assert caught.value.code == "state_unwritable"


def test_the_end_of_a_daemon_is_seen_by_its_lock(tmp_path):
    assert spawn.wait_for_end(str(tmp_path), 0.1)
    with open(tmp_path / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not spawn.wait_for_end(str(tmp_path), 0.1)
    assert spawn.wait_for_end(str(tmp_path), 0.1)


def lock_of(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    return open(tmp_path / "lock")


def test_the_holder_is_who_wrote_the_lock_lives_and_holds_it(tmp_path):
    from omnid import platform

    mine, start = os.getpid(), platform.process_start(os.getpid())
    assert spawn.holder(str(tmp_path)) is None
    with lock_of(tmp_path, f"pid {mine}\nstart {start}\nsocket /s\n") as lock:
        assert spawn.holder(str(tmp_path)) is None, "nobody holds it"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert spawn.holder(str(tmp_path)) == spawn.Holder(mine, start, "/s")
        for text in ("", "pid\n", f"pid {mine}", f"pid {mine}\nstart 1", "pid x\nstart 1", "pid 4194305\nstart 1"):
            (tmp_path / "lock").write_text(text)
            assert spawn.holder(str(tmp_path)) is None, text


def test_only_the_daemon_that_was_found_is_ended():
    from omnid import platform

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        start = platform.process_start(child.pid)
        spawn.terminate(spawn.Holder(child.pid, "another", ""))
        assert child.poll() is None
        spawn.terminate(spawn.Holder(child.pid, start, ""))
        assert child.wait(10) == -signal.SIGTERM
        spawn.terminate(spawn.Holder(child.pid, start, ""))
    finally:
        child.kill()
