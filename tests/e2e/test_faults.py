"""The weather: full and read-only disks, foreign files, damaged databases, clocks that jump, garbage at the socket."""

import json
import os
import random
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from omnid import config
from omnid.api.client import Client
from omnid.clock import SystemClock
from omnid.daemon import Daemon, serve
from omnid.errors import Retryable
from omnid.log import Log
from omnid.secrets import Secrets
from tests.e2e.harness import LOOK_S, WAIT_S, Home, assert_says, until
from tests.fakes import disk

MIB = 1 << 20
DAY_MS = 86_400_000
LIMIT_BYTES = 4 * MIB
RSS_GROWTH_MAX = 24 * MIB


@contextmanager
def small_disk(home: Home, options: str) -> Iterator[None]:
    """Gives the home a state directory on a file system of its own."""
    with disk.small_disk(home.root / "disk", options) as path:
        home.use(path)
        home.through = disk.inside(path)
        yield


def fill(path: Path, left_bytes: int) -> None:
    """Fills the disk with a file, up to so many bytes."""
    status = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - left_bytes)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_full_disk_loses_nothing_and_heals(home: Home) -> None:
    home.configure("[store]\nfree_bytes_min = 1024\nwal_bytes_max = 1048576")
    with small_disk(home, "size=16m"), home.gate() as gate:
        home.start()
        running = home.sh("echo >> effect; read x < go; echo done")
        until(lambda: home.lines("effect"), "the effect")
        assert (home.state / "journal.db").stat().st_size, "the journal isn't on the small disk"
        fill(home.state / "ballast", 0)
        refused = until(lambda: refusal(home, 100_000), "a refusal")
        assert refused.code in {"disk_full", "disk_low"}
        gate.let()
        until(lambda: "result_waits" in (home.state / "omnid.log").read_text() or ended(home, running), "its result")
        if not ended(home, running):
            assert {problem["code"] for problem in home.client.status()["problems"]} & {"disk_full", "disk_low"}
            assert "Needs you" in home.ctl("status").out
            assert "free some space" in home.client.why(running)["text"]
        (home.state / "ballast").unlink()
        assert home.wait(running)["task"]["state"] == "completed"
        later = until(lambda: submitted(home), "a submit")
        assert home.wait(later)["task"]["state"] == "completed"
        findings = {finding["name"]: finding for finding in home.ctl("doctor", "--json").json()["findings"]}
        assert findings["log"]["ok"]
        assert findings["database"]["ok"]
        home.stop()
        home.start()
        assert sum(home.client.status()["tasks"].values()) == len(home.client.list(limit=500)["tasks"])
        assert len(home.lines("effect")) == 1
        home.stop()
    home.assert_nothing_left()


def refusal(home: Home, size_bytes: int) -> Retryable | None:
    """Submits a task of that size for much later, and gives the error that refuses it."""
    try:
        home.submit(["true"], stdin="x" * size_bytes, not_before_ms=1 << 45)
    except Retryable as error:
        return error
    return None


def submitted(home: Home) -> str | None:
    try:
        return home.sh("true")
    except Retryable:
        return None


def ended(home: Home, task: str) -> bool:
    return home.client.get(task)["task"]["finished_at_ms"] is not None


def test_new_tasks_are_refused_before_the_disk_is_full(home: Home) -> None:
    home.configure("[store]\nfree_bytes_min = 25165824\nwal_bytes_max = 1048576")
    with small_disk(home, "size=64m"), home.gate() as gate:
        home.start()
        running = home.sh("read x < go; echo done")
        fill(home.state / "ballast", 22 * MIB)
        # The room is looked at once a second, so a task or two may still be taken.
        until(lambda: refusal(home, 10), "a refusal")
        assert_says("disk_low", home.ctl("add", "--", "true").err)
        assert [problem["code"] for problem in home.client.status()["problems"]] == ["disk_low"]
        assert "Needs you (1)" in home.ctl("status").out
        gate.let()
        assert home.wait(running)["attempts"][0]["output"] == "done\n"
        home.stop()


def test_a_read_only_state_directory_is_refused(home: Home) -> None:
    with small_disk(home, "ro,size=1m"):
        assert_says("state_unwritable", home.refuses())


def test_a_foreign_file_in_the_place_of_the_socket_stays(home: Home) -> None:
    home.state.mkdir(mode=0o700)
    home.socket.write_text("mine")
    assert_says("foreign_file", home.refuses())
    assert home.socket.read_text() == "mine"
    home.socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
        listener.listen()
        assert_says("already_running", home.refuses())
    # Now it is a dead socket, as a killed daemon leaves one.
    home.start()


def test_a_socket_path_that_is_too_long_is_explained(home: Home) -> None:
    long = str(home.root / ("x" * 100) / "omnid.sock")
    assert_says("path_too_long", home.refuses({"OMNID_SOCKET": long}))
    assert_says("path_too_long", home.ctl("status", environ={"OMNID_SOCKET": long}).err)


def test_a_directory_that_others_can_enter_is_refused(home: Home) -> None:
    home.state.mkdir()
    home.state.chmod(0o755)
    assert_says("unsafe_directory", home.refuses())
    assert not list(home.state.iterdir())


def test_a_second_daemon_refuses_and_harms_nothing(omnid: Home) -> None:
    with omnid.gate() as gate:
        task = omnid.sh("read x < go")
        omnid.wait(task, "executing")
        said = omnid.refuses()
        assert_says("already_running", said)
        assert f"pid {omnid.client.status()['pid']}" in said
        gate.let()
        assert omnid.wait(task)["attempts_total"] == 1


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def garble(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(at).randbytes(size))


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("schema_newer", partial(edit, statement="PRAGMA user_version = 99")),
        ("not_a_database", partial(edit, statement="PRAGMA application_id = 7")),
        ("not_a_database", partial(garble, at=0, size=100)),
        ("journal_damaged", partial(garble, at=100, size=8000)),
        ("not_a_database", lambda path: path.write_text("a poem\n" * 1000)),
    ],
)
def test_a_database_that_is_not_ours_stays_as_it_is(omnid: Home, code: str, damage: Callable[[Path], None]) -> None:
    omnid.wait(omnid.sh("true"))
    omnid.stop()
    database = omnid.state / "journal.db"
    damage(database)
    before = database.read_bytes()
    assert_says(code, omnid.refuses())
    assert database.read_bytes() == before


def test_damage_inside_the_database_is_found(omnid: Home) -> None:
    for number in range(30):
        omnid.wait(omnid.sh(f"echo {number}"))
    omnid.stop()
    edit(omnid.state / "journal.db", "UPDATE task SET priority = 3 WHERE number = 7")
    omnid.start()
    said = omnid.ctl("doctor", "--json")
    assert said.code == 1, said
    (finding,) = [finding for finding in said.json()["findings"] if not finding["ok"]]
    assert finding["name"] == "log"
    assert "priority" in finding["detail"]


def test_damage_that_ends_a_daemon_is_named_to_who_asks_next(omnid: Home) -> None:
    omnid.wait(omnid.sh("true"))
    omnid.stop()
    database = omnid.state / "journal.db"
    with closing(sqlite3.connect(database)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'task'")
        ((size,),) = connection.execute("PRAGMA page_size")
    with database.open("r+b") as file:
        # Rows lie at the end of their page: only who reads one finds it.
        file.seek(page * size - 1000)
        file.write(b"\xff" * 1000)
    omnid.start()
    process, omnid.process = omnid.process, None
    assert process is not None
    assert_says("daemon_lost", omnid.ctl("list").err)
    assert process.wait(WAIT_S) == 1
    said = omnid.ctl("list", environ={"COLUMNS": "1000"})
    assert said.code == 3
    assert_says("journal_damaged", said.err)
    assert "The last daemon ended with an error" in said.err


def test_a_daemon_whose_place_was_taken_accepts_nothing_and_ends(omnid: Home) -> None:
    omnid.wait(omnid.sh("true"))
    process, omnid.process = omnid.process, None
    assert process is not None
    aside = omnid.state.with_name("aside")
    omnid.state.rename(aside)
    omnid.state.mkdir(mode=0o700)

    def refused() -> bool:
        try:
            # As a relay does, over the connection that it has.
            omnid.client.call("omnid/task.submit", {"argv": ["true"], "cwd": "/", "key": "k"})
        except Retryable as error:
            return error.code == "daemon_lost"
        return False

    until(refused, "the end of the daemon")
    assert process.wait(WAIT_S) == 1
    assert_says("state_moved", omnid.said.read_text())
    shutil.rmtree(omnid.state)
    aside.rename(omnid.state)
    omnid.start()
    assert "t1" in [task["name"] for task in omnid.client.list()["tasks"]]


class JumpingClock(SystemClock):
    """A wall clock that somebody sets; monotonic time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.off_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.off_ms


@contextmanager
def in_thread(path: Path) -> Iterator[Callable[..., Any]]:
    """Gives `call(method, params)`, which asks the daemon of this very process from a thread."""
    with Client(str(path)) as client:

        async def call(method: str, **params: Any) -> Any:
            return await anyio.to_thread.run_sync(partial(client.call, f"omnid/{method}", params))

        yield call


@pytest.mark.anyio
async def test_a_clock_that_jumps_loses_nothing_and_hurries_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.flow.wakeup.NAP_S_MAX", 0.2)
    clock = JumpingClock()
    secret = f'env_set = {{ TOKEN = "file:{home.root}/token" }}'
    home.configure(f'[[executor]]\nname = "keyed"\nkind = "command"\n{secret}')
    loaded = config.load(home.environ)
    home.state.mkdir(mode=0o700)
    start = partial(
        serve,
        loaded,
        environ=home.environ,
        clock=clock,
        log=Log(clock, lambda text: text).logger(),
        secrets=Secrets(home.environ),
    )
    async with anyio.create_task_group() as tasks:
        daemon: Daemon = await tasks.start(lambda task_status: start(task_status=task_status))
        with in_thread(home.socket) as call, home.gate() as gate:

            async def submit(script: str, **fields: Any) -> str:
                argv = ["/bin/sh", "-c", script]
                return str((await call("task.submit", argv=argv, cwd=str(home.work), **fields))["name"])

            async def state(task: str, wait_s: float = 0.0) -> str:
                return str((await call("task.get", task=task, wait_s=wait_s))["task"]["state"])

            later = await submit("true", not_before_ms=clock.wall_ms() + DAY_MS // 2)
            much_later = await submit("true", not_before_ms=clock.wall_ms() + 3 * DAY_MS)
            running = await submit("read x < go; echo >> effect", timeout_s=600)
            clock.off_ms = DAY_MS
            # Nothing else happens: the timer itself notices.
            assert await state(later, 20) == "completed"
            assert await state(much_later) == "waiting"
            failing = await submit("[ -e tried ] || { : > tried; exit 1; }", backoff_s=3600)
            down = await submit("true", executor="keyed")
            with anyio.fail_after(20):
                while await state(failing) != "waiting" or not (await call("status"))["gates"]:  # noqa: ASYNC110
                    await anyio.sleep(LOOK_S)
            (home.root / "token").write_text("abcdefgh")
            clock.off_ms = -DAY_MS
            # What was to wait for a moment doesn't wait until the clock is back where it was.
            assert await state(failing, 20) == "completed"
            with anyio.fail_after(20):
                # A task that waits for a key is not waited for.
                while await state(down, 1) != "completed":  # noqa: ASYNC110
                    await anyio.sleep(LOOK_S)
            assert await state(running) == "executing"
            assert await state(much_later) == "waiting"
            gate.let()
            assert await state(running, 20) == "completed"
            clock.off_ms = 0
            assert await state(await submit("true"), 20) == "completed"
            times = [entry["at_ms"] for entry in (await call("operations", limit=1000))["operations"]]
            assert times == sorted(times)
            assert (await call("doctor"))["ok"]
            daemon.stop()
    assert len(home.lines("effect")) == 1


def rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def malformed(chance: random.Random, number: int) -> bytes:
    """Makes one line that is no good request, and yet has one answer."""
    good = {"jsonrpc": "2.0", "id": number, "method": "omnid/task.get", "params": {"task": "t1"}}
    text = json.dumps(good).encode()
    deep = chance.randrange(1, 20_000)
    kinds: list[Callable[[], bytes]] = [
        lambda: b"!" + chance.randbytes(chance.randrange(1, 2000)),
        lambda: text[: chance.randrange(1, len(text) - 1)],
        lambda: b"[" * deep,
        lambda: b'{"a":' * deep,
        lambda: json.dumps([good]).encode(),
        lambda: json.dumps(chance.choice([None, 7, "text", True, {}, [], {"jsonrpc": "2.0"}])).encode(),
        lambda: json.dumps({**good, "jsonrpc": chance.choice(["1.0", 2, None])}).encode(),
        lambda: json.dumps({**good, "method": chance.choice([None, 5, {}, []])}).encode(),
        lambda: json.dumps({**good, "method": f"omnid/{chance.choice(['', 'x', 'task', 'é', 'x' * 999])}"}).encode(),
        lambda: json.dumps({**good, "params": chance.choice([None, 5, "t1", [], ["t1"], {}, {"x": 1}])}).encode(),
        lambda: json.dumps({**good, "params": {"task": chance.choice(["", "t0", "\0", "../x", 5, None])}}).encode(),
        lambda: json.dumps({**good, "params": {"task": "t1", "wait_s": chance.choice([-1, 51, 1e308])}}).encode(),
        lambda: json.dumps({**good, "id": chance.choice([[], {}, True])}).encode(),
        lambda: text.replace(b"t1", b"\xff\xfe\xc0"),
        lambda: text.replace(b'{"task": "t1"}', b"[" * deep + b"]" * deep),
        lambda: text.replace(b"t1", b"x" * chance.randrange(201, 100_000)),
        lambda: text.replace(b"t1", rb"\ud800"),
    ]
    return chance.choice(kinds)().replace(b"\n", b" ")


def check_answer(line: bytes) -> None:
    answer = json.loads(line)
    assert answer["jsonrpc"] == "2.0"
    error = answer["error"]
    assert isinstance(error["code"], int)
    assert all(error["data"][name] for name in ("code", "what", "why", "do")), answer
    assert error["data"]["code"] != "internal", answer
    assert len(line) < 4096


@contextmanager
def connected(home: Home) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(str(home.socket))
        yield connection


def send_malformed(home: Home, chance: random.Random, count: int) -> None:
    with connected(home) as connection, connection.makefile("rb") as answers:
        for first in range(0, count, 50):
            connection.sendall(b"".join(malformed(chance, first + n) + b"\n" for n in range(50)))
            for _ in range(50):
                check_answer(answers.readline())


def send_huge(home: Home, chance: random.Random) -> None:
    with connected(home) as connection, connection.makefile("rb") as answers:
        start = chance.choice(
            [b"", b'{"jsonrpc":"2.0","id":1,"method":"omnid/task.submit","params":{"stdin":"', b"[[["]
        )
        left = LIMIT_BYTES + 1 - len(start)
        connection.sendall(start + b"x" * left + b"\n")
        answer = answers.readline()
        assert json.loads(answer)["error"]["data"]["code"] == "message_too_large"
        check_answer(answer)
        connection.sendall(b"no json\n")
        check_answer(answers.readline())


def send_odd_mcp(home: Home, chance: random.Random) -> None:
    """Speaks MCP badly: every line has an error for its answer, or the connection is cut."""
    with connected(home) as connection, connection.makefile("rb") as answers:
        connection.sendall(b'{"jsonrpc":"2.0","id":0,"method":"ping"}\n')
        assert json.loads(answers.readline())["id"] == 0
        for number in range(1, 20):
            method = chance.choice(["tools/call", "tools/list", "x", "initialize", "resources/read"])
            params = chance.choice([None, 5, [], {"name": 5}, {"name": "x"}, {"cursor": []}, {"arguments": 3}])
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            connection.sendall(json.dumps(message).encode() + b"\n")
            line = answers.readline()
            if not line:
                return
            assert "error" in json.loads(line) or method == "tools/list", line


def test_ten_thousand_bad_messages_harm_nobody(omnid: Home) -> None:
    chance = random.Random(20_261_121)
    pid = omnid.client.status()["pid"]
    send_malformed(omnid, chance, 500)
    send_huge(omnid, chance)
    send_odd_mcp(omnid, chance)
    before = rss_bytes(pid)
    for _ in range(19):
        send_malformed(omnid, chance, 500)
        send_huge(omnid, chance)
        send_odd_mcp(omnid, chance)
        with connected(omnid) as connection:
            # Half a line, and gone.
            connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"omnid/st')
    assert omnid.wait(omnid.sh("true"))["task"]["state"] == "completed"
    status = omnid.client.status()
    assert status["pid"] == pid
    until(lambda: omnid.client.status()["clients"] == 1, "the end of the other clients")
    grown = rss_bytes(pid) - before
    assert grown < RSS_GROWTH_MAX, f"the daemon has grown by {grown} bytes"
    assert "Traceback" not in (omnid.state / "omnid.log").read_text()
    assert omnid.ctl("doctor").code == 0
