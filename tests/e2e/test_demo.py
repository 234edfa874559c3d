"""The demo as people run it: its own process, real daemons, real signals; and nothing of it afterwards."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import tempfile
import termios

import pytest

from omnid.ctl.demo import place
from omnid.ctl.demo_day import Count, DayPlace
from omnid.errors import Retryable
from tests.e2e.ground import DEMO, read_until
from tests.e2e.harness import WAIT_S

GOOD = "12 done, 0 lost, 0 done twice"

CHANGED = """
import sys
from omnid.ctl import demo_day_tasks
from omnid.ctl.main import main
jobs = {job.name: job for job in demo_day_tasks.JOBS}
%s
demo_day_tasks.JOBS = tuple(jobs.values())
sys.exit(main(["demo"]))
"""


def test_it_loses_nothing_without_a_terminal_and_without_a_network(ground):
    ground.cut_network()
    code, out = ground.run()
    assert (code, out.splitlines()[-1]) == (0, GOOD), out
    assert re.search(r"adopted t4 and t6", out.replace("\n", " "))
    assert "t7 waits for its lane report, where t6 runs" in out
    assert "at attempt 2" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    ground.assert_untouched()


def test_the_guard_against_the_network_works(ground):
    ground.cut_network()
    code, out = ground.run([sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"])
    assert (code, "there is no network here" in out) == (1, True)


def test_two_at_once_keep_out_of_each_other_s_way(ground):
    ground.assert_two_at_once(DEMO, DEMO, GOOD)


def test_as_json_it_is_one_line(ground):
    code, out = ground.run([*DEMO, "--json"])
    (line,) = out.splitlines()
    result = json.loads(line)["result"]
    assert result.pop("back_s") > 0
    assert (code, result) == (0, {"done": 12, "lost": 0, "twice": 0})
    ground.assert_untouched()


def test_on_a_terminal_it_is_coloured_and_fits(ground):
    screen, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 60, 0, 0))
    shown = b""
    with ground.start(stdin=its_end, stdout=its_end, stderr=its_end) as process:
        os.close(its_end)
        # EIO: the last one that had the terminal open has gone.
        with contextlib.suppress(OSError):
            while piece := os.read(screen, 4096):
                shown += piece
        os.close(screen)
        assert process.wait(WAIT_S) == 0, shown
    assert b"\x1b[1m2. The daemon is killed\x1b[0m" in shown
    plain = re.sub(r"\x1b\[[0-9;]*[mK]", "", shown.decode()).replace("\r\n", "\n")
    assert max(len(line.rpartition("\r")[2]) for line in plain.splitlines()) <= 60
    assert plain.splitlines()[-1] == GOOD
    ground.assert_untouched()


@pytest.mark.parametrize(
    ("number", "mark"),
    [
        (signal.SIGINT, b"your own"),
        (signal.SIGINT, b"2. The daemon is killed"),
        (signal.SIGTERM, b"3. Ask it why"),
        (signal.SIGHUP, b"kill -9"),
    ],
)
def test_a_signal_ends_it_and_nothing_is_left(ground, number, mark):
    ground.assert_ended_by(number, DEMO, mark, GOOD)


def test_a_reader_that_goes_away_ends_it_and_nothing_is_left(ground):
    with ground.start() as process:
        read_until(process, b"1. The tasks go in")
        process.stdout.close()
        assert process.wait(2 * WAIT_S) == 141
    ground.assert_untouched()


def test_what_is_ignored_stays_ignored(ground):
    argv = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *DEMO]
    with ground.start(argv) as process:
        out = read_until(process, b"1. The tasks go in")
        process.send_signal(signal.SIGHUP)
        rest, _ = process.communicate(timeout=2 * WAIT_S)
    assert process.returncode == 0, (out + rest).decode()
    ground.assert_untouched()


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ('jobs["paths"] = jobs["paths"]._replace(script="echo paths >> ledger")', "12 done, 0 lost, 1 done twice"),
        ('jobs["paths"] = jobs["paths"]._replace(script="exit 0")', "11 done, 1 lost, 0 done twice"),
        ('jobs["sizes"] = jobs["sizes"]._replace(script="exit 1")', "11 done, 1 lost, 0 done twice"),
    ],
)
def test_what_the_ledger_lacks_or_has_twice_is_counted(ground, change, count):
    code, out = ground.run([sys.executable, "-c", CHANGED % change])
    assert (code, out.splitlines()[-1]) == (1, count), out
    ground.assert_untouched()


def test_a_task_that_was_not_adopted_is_no_good_end(ground):
    change = 'jobs["compress"] = jobs["compress"]._replace(script="touch compress.begun; exit 1")'
    code, out = ground.run([sys.executable, "-c", CHANGED % change])
    assert code == 1
    assert "was not adopted" in out
    ground.assert_untouched()


def test_no_place_for_its_files_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # A long path would be passed over for its sockets.
    with pytest.raises(Retryable, match="no place for its files"), place({}, DayPlace):
        pass


@pytest.mark.parametrize(
    ("ledger", "count"),
    [
        ([], (0, 2, 0)),
        (["a", "b"], (2, 0, 0)),
        (["b", "a", "b"], (2, 0, 1)),
        (["a", "a", "a"], (1, 1, 2)),
        (["a", "b", ""], (2, 0, 1)),
    ],
)
def test_the_count(ledger, count):
    assert Count.of(ledger, ["a", "b"]) == count
    assert Count.of(ledger, ["a", "b"]).good == (count == (2, 0, 0))
