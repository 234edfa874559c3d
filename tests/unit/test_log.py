"""The log: what a line holds, what it leaves out, and how much of it there can be."""

import io
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from omnid.clock import SystemClock
from omnid.log import HIDDEN, VALUE_CHARS_MAX, Log, RotatingFile


class StoppedClock(SystemClock):
    def wall_ms(self) -> int:
        return 1_800_000_000_123


def log_to(path: Path | None = None, **options: Any) -> Log:
    redact = lambda text: text.replace("correct-horse", "[env:MY_KEY]")  # noqa: E731
    return Log(StoppedClock(), redact, path=str(path) if path else None, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_json_with_time_level_and_context(tmp_path: Path) -> None:
    with log_to(tmp_path / "log") as log:
        log.logger(part="store").info("opened", path="/x", n=1)
    (line,) = lines(tmp_path / "log")
    assert list(line) == ["time", "level", "event", "part", "path", "n"]
    assert line["time"] == "2027-01-15T08:00:00.123+00:00"
    assert (line["level"], line["event"], line["part"], line["path"], line["n"]) == ("info", "opened", "store", "/x", 1)


def test_secrets_are_left_out_wherever_they_stand(tmp_path: Path) -> None:
    with log_to(tmp_path / "log") as log:
        logger = log.logger()
        logger.info(
            "with correct-horse", api_key="x1", deep={"token": "x2", "list": ["correct-horse", {"password": "x3"}]}
        )
        logger.info("cut", text="-" * (VALUE_CHARS_MAX - 5) + "correct-horse")
        try:
            raise ValueError("correct-horse")
        except ValueError:
            logger.exception("failed")
    text = (tmp_path / "log").read_text()
    assert not any(secret in text for secret in ("correct-horse", "x1", "x2", "x3", "corre"))
    first, _, third = lines(tmp_path / "log")
    assert first["deep"] == {"token": HIDDEN, "list": ["[env:MY_KEY]", {"password": HIDDEN}]}
    assert "ValueError: [env:MY_KEY]" in third["exception"]


def test_a_line_stays_short_and_deep_things_end(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with log_to(tmp_path / "log") as log:
        log.logger().info("big", text="x" * 1_000_000, endless=endless, binary=b"\xff", thing=object())
    assert (tmp_path / "log").stat().st_size < 2 * VALUE_CHARS_MAX
    (line,) = lines(tmp_path / "log")
    assert line["text"].endswith("... (1000000 characters)")


def test_levels_below_the_chosen_one_are_left_out(tmp_path: Path) -> None:
    with log_to(tmp_path / "log", level="warning") as log:
        log.logger().info("no")
        log.logger().warning("yes")
    assert [line["event"] for line in lines(tmp_path / "log")] == ["yes"]


def test_libraries_are_heard_while_the_log_is_open_and_not_after(tmp_path: Path) -> None:
    with log_to(tmp_path / "log") as log:
        logging.getLogger("some.library").warning("it says %s", "correct-horse")
        # Not through a logger: pytest's own handler doesn't survive it.
        log._bridge.handle(logging.LogRecord("some.library", logging.WARNING, "", 0, "not %d", ("a number",), None))
    assert [line["event"] for line in lines(tmp_path / "log")] == ["it says [env:MY_KEY]", "not %d"]
    assert lines(tmp_path / "log")[0]["library"] == "some.library"
    assert not [handler for handler in logging.getLogger().handlers if "omnid" in type(handler).__module__]


def test_the_files_are_bounded_and_no_line_is_torn(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "log"), bytes_max=100, files_max=3)
    for number in range(50):
        file.write(b"%029d\n" % number)
    file.close()
    names = sorted(os.listdir(tmp_path))
    assert names == ["log", "log.1", "log.2"]
    assert all((tmp_path / name).stat().st_size <= 100 for name in names)
    kept = b"".join((tmp_path / name).read_bytes() for name in reversed(names)).split()
    assert [int(line) for line in kept] == list(range(50 - len(kept), 50))
    assert len(kept) >= 7


def test_one_file_alone_is_begun_anew_and_an_old_one_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 95 + b"\n")
    file = RotatingFile(str(path), bytes_max=100, files_max=1)
    file.write(b"y" * 10 + b"\n")
    file.close()
    assert os.listdir(tmp_path) == ["log"]
    assert path.read_bytes() == b"y" * 10 + b"\n"


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    log_to(tmp_path / "log").close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    with log_to(tmp_path / "log") as log:
        logger = log.logger()
        writers = [
            threading.Thread(target=lambda n=n: [logger.info("x" * 200, n=n) for _ in range(50)]) for n in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(30)
    assert len(lines(tmp_path / "log")) == 200


def test_a_log_that_cannot_be_written_stops_nothing_and_tells_later(tmp_path: Path) -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError("no space left")
            return super().write(text)

    stream = Full()
    with log_to(stream=stream) as log:
        for _ in range(3):
            log.logger().info("lost")
        stream.full = False
        log.logger().info("written")
        log.logger().info("again")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first["lost_lines"] == 3
    assert "lost_lines" not in second


def test_lines_after_the_end_are_dropped(tmp_path: Path) -> None:
    log = log_to(tmp_path / "log")
    log.close()
    log.logger().info("late")
    log.close()
    assert (tmp_path / "log").read_bytes() == b""


def test_a_terminal_gets_lines_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with log_to(stream=stream) as log:
        log.logger(part="store").warning("opened", n=1)
    line = stream.getvalue()
    assert line.startswith("2027-01-15T08:00:00.123+00:00 [warning")
    assert "opened" in line
    assert "n=1" in line
    assert "\x1b" not in line
