"""The local model's process: woken once, ready when it answers, asleep where something is missing, killed for good."""

import os
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from omnid.errors import Retryable
from omnid.executor import brainstem
from omnid.executor.brainstem import Brainstem, BrainstemState, Surroundings
from omnid.executor.direct import Direct
from omnid.executor.local_model import plan
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.executor.supervised import Server, Supervised
from omnid.log import Log
from omnid.settings import GIB, Config, Models
from omnid.settings import Brainstem as Section
from omnid.weights import Weights, WeightsFile, digest, directory_of, write
from tests.contract.model_ways import Clock
from tests.fakes.tiny_model import make

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
NAME = "test/tiny"
REVISION = "0123abcd"
DOWN = Retryable("executor_down", executor="brainstem", detail="it can't be read")


class World:
    """A brainstem, all around it, and what it said."""

    def __init__(self, directory: Path, tasks: anyio.abc.TaskGroup) -> None:
        self.directory = directory
        self.tasks = tasks
        self.supervised = Supervised(directory / "spool", Clock(), Config().limits, 0.3)
        self.direct = Direct(Clock(), Models())
        self.free_bytes = 64 * GIB
        self.open_calls = False
        self.asked = 0
        self.turns: list[str] = []
        self.changed, self.looked = anyio.Event(), anyio.Event()
        self.made: list[Brainstem] = []
        self.logged = StringIO()

    def brainstem(self, section: Section, *, has_mlx: bool = False) -> Brainstem:
        around = Surroundings(
            str(self.directory / "models"),
            has_mlx=has_mlx,
            busy=self._busy,
            changed=self._changed,
            memory=lambda: self.free_bytes,
        )
        environ = {name: os.environ[name] for name in ("PATH", "HOME")}
        log = Log(Clock(), str, stream=self.logged).logger()
        made = Brainstem(
            section, around, self.supervised, environ, self.direct, tasks=self.tasks, clock=Clock(), log=log
        )
        self.made.append(made)
        return made

    def _busy(self) -> bool:
        self.asked += 1
        self.looked.set()
        return self.open_calls

    async def busy_was_asked(self, times: int) -> None:
        """Waits for so many looks at whether it is used: each but the first comes a whole idle time after the last."""
        wanted = self.asked + times
        while self.asked < wanted:
            self.looked = anyio.Event()
            await self.looked.wait()

    def _changed(self) -> None:
        state = self.made[-1].state()
        self.turns.append(state.phase if not state.cause else f"{state.phase}: {state.cause}")
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    async def until(self, fits: Callable[[BrainstemState], bool]) -> BrainstemState:
        with anyio.fail_after(WAIT_S):
            while True:
                changed = self.changed
                if fits(state := self.made[-1].state()):
                    return state
                await changed.wait()


@pytest.fixture
async def world(anyio_backend: str, tmp_path: Path) -> AsyncGenerator[World]:
    async with anyio.create_task_group() as tasks:
        made = World(tmp_path, tasks)
        try:
            yield made
        finally:
            for one in made.made:
                await one.kill()
            await made.direct.aclose()


async def free_port() -> int:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        return int(listener.extra(anyio.abc.SocketAttribute.local_port))


async def section(mode: str = "ok", **more: Any) -> Section:
    """A server that is up at once: the fake cloud; its mode is how it answers."""
    port = await free_port()
    argv = ("/usr/bin/env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.fakes.cloud", str(port))
    return Section(argv=argv, base_url=f"http://127.0.0.1:{port}/{mode}/v1", **more)


def cached(root: Path, source: Path, name: str = NAME) -> Weights:
    """Puts a model into the cache, as a pull does."""
    directory = Path(directory_of(str(root), name), REVISION)
    directory.parent.mkdir(parents=True, exist_ok=True)
    source.rename(directory)
    files = tuple(
        WeightsFile(path.name, path.stat().st_size, digest(str(path)), path.stat().st_mtime_ns)
        for path in sorted(directory.iterdir())
    )
    weights = Weights(name, REVISION, str(directory), files, 1, 1)
    write(weights)
    return weights


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_it_wakes_once_however_many_ask_and_is_killed(world: World) -> None:
    made = world.brainstem(await section())
    assert made.state() == BrainstemState("asleep")
    for _ in range(5):
        made.wake()
    state = await world.until(lambda state: state.phase == "ready")
    made.wake()
    assert world.turns == ["waking", "ready"]
    assert state.channel is not None
    assert state.memory_bytes
    assert isinstance(await world.direct.call(state.channel, "", Ask("m", (Message("user", "Hi"),), 9), WAIT_S), Answer)
    assert made._server is not None
    pid = made._server.pid
    assert pid is not None
    assert alive(pid)
    assert await made.kill()
    assert not alive(pid)
    after = made.state()
    assert (after.phase, after.why, after.channel, after.memory_bytes) == ("asleep", "", None, None)
    assert after.returned_bytes
    assert await made.kill() is None


async def test_with_too_little_memory_it_stays_asleep_until_there_is_enough(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brainstem, "AGAIN", brainstem.AGAIN._replace(base_s=0.1, max_s=0.1))
    world.free_bytes = GIB - 1
    made = world.brainstem(await section())
    state = await made.settled()
    assert (state.phase, state.cause) == ("asleep", "memory")
    assert re.fullmatch(r"it needs \d+ MiB of memory, and only 1023 are free", state.why)
    assert world.turns[:2] == ["waking", "asleep: memory"]
    world.free_bytes = 2 * GIB
    await world.until(lambda state: state.phase == "ready")
    assert world.turns[-2:] == ["waking", "ready"]


async def test_nobody_tells_how_much_memory_is_free(world: World) -> None:
    def unknown() -> int:
        raise OSError("no vm_stat here")

    made = world.brainstem(await section())
    made._around = made._around._replace(memory=unknown)
    assert (await made.settled()).phase == "ready"


async def test_memory_is_measured_aside_and_again_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS it is a program that tells, and `state` is called from the loop and from the writer."""
    threads: list[int] = []
    sizes = iter(range(1, 1000))

    def resident(pid: int) -> int:
        threads.append(threading.get_ident())
        return next(sizes)

    def free() -> int:
        threads.append(threading.get_ident())
        return 64 * GIB

    monkeypatch.setattr(brainstem.platform, "resident_bytes", resident)
    monkeypatch.setattr(brainstem, "MEASURE_S", 0.01)
    made = world.brainstem(await section())
    made._around = made._around._replace(memory=free)
    world.open_calls = True
    assert (await made.settled()).memory_bytes
    with anyio.fail_after(WAIT_S):
        await world.busy_was_asked(3)
    assert (made.state().memory_bytes or 0) >= 3
    assert await made.kill()
    assert threading.get_ident() not in threads
    assert made.state().memory_bytes is None


async def test_what_is_not_used_is_killed_and_woken_again(world: World) -> None:
    made = world.brainstem(await section(idle_s=0.2))
    world.open_calls = True
    made.wake()
    await world.until(lambda state: state.phase == "ready")
    used = anyio.current_time()
    world.open_calls = False
    state = await world.until(lambda state: state.phase == "asleep")
    assert anyio.current_time() - used >= 0.2
    assert (state.cause, state.why) == ("idle", "nothing has used it for a while")
    assert state.returned_bytes
    made.wake()
    await world.until(lambda state: state.phase == "ready")


async def test_a_call_that_is_open_keeps_it_awake(world: World) -> None:
    made = world.brainstem(await section(idle_s=0.05))
    world.open_calls = True
    made.wake()
    await world.until(lambda state: state.phase == "ready")
    await world.busy_was_asked(4)
    assert made.state().phase == "ready"
    with made.held():
        world.open_calls = False
        await world.busy_was_asked(4)
        assert made.state().phase == "ready"
    await world.until(lambda state: state.phase == "asleep")


@pytest.mark.parametrize(
    ("mode", "argv", "more", "cause", "why"),
    [
        ("ok", ("/no/such/llama-server",), {}, "missing", "there is no program /no/such/llama-server"),
        ("ok", ("/bin/sh", "-c", "echo no weights >&2; exit 3"), {}, "failed", "no weights"),
        ("ok", ("/bin/sleep", "60"), {"start_timeout_s": 0.5}, "failed", "it was not ready within 0.5 s"),
        ("fault", (), {"start_timeout_s": 2.0}, "failed", "it was not ready within 2 s"),
    ],
)
async def test_what_does_not_become_ready_says_why(
    world: World, mode: str, argv: tuple[str, ...], more: dict[str, float], cause: str, why: str
) -> None:
    given = await section(mode, **more)
    if argv:
        given = Section(argv=argv, base_url=given.base_url, **more)
    state = await world.brainstem(given).settled()
    assert (state.phase, state.cause) == ("asleep", cause)
    assert why in state.why


async def test_a_program_that_listens_there_already_is_not_taken_for_it(world: World) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/v1"
        state = await world.brainstem(Section(argv=("/bin/sleep", "60"), base_url=url)).settled()
    assert (state.cause, state.why) == ("occupied", f"another program is at {url}")


async def test_where_there_is_none_nothing_is_woken(world: World) -> None:
    made = world.brainstem(Section())
    made.wake()
    assert made.state() == BrainstemState("none")
    assert not world.turns


async def test_a_rehearsal_kills_what_it_woke_and_leaves_what_is_needed(world: World) -> None:
    made = world.brainstem(await section())
    found = await made.rehearse(lambda: False)
    assert (found.problem, found.ready_s > 0, bool(found.memory_bytes)) == ("", True, True)
    assert made.state().phase == "asleep"
    assert not (await made.rehearse(lambda: True)).problem
    assert made.state().phase == "ready"
    assert not (await made.rehearse(lambda: False)).problem
    assert made.state().phase == "ready"


async def test_a_rehearsal_leaves_what_somebody_has_come_to_use(world: World) -> None:
    made = world.brainstem(await section())
    assert not made.held_by_one
    with made.held():
        assert made.held_by_one
        with made.held():
            assert not made.held_by_one
        await made.rehearse(lambda: False)
        assert made.state().phase == "ready"
    await made.kill()
    world.open_calls = True
    await made.rehearse(lambda: False)
    assert made.state().phase == "ready"


async def test_what_is_wanted_while_it_is_being_killed_is_woken_after(world: World) -> None:
    made = world.brainstem(await section())
    await made.settled()
    async with anyio.create_task_group() as group:
        group.start_soon(made.kill)
        await anyio.wait_all_tasks_blocked()
        assert made.state().channel is None, "nobody is to call what is being killed"
        state = await made.settled()
    assert state.phase == "ready"
    assert world.turns == ["waking", "ready", "waking", "asleep", "waking", "ready"]


async def test_a_kill_takes_back_a_wish_that_came_during_the_one_before(world: World) -> None:
    made = world.brainstem(await section())
    await made.settled()
    async with anyio.create_task_group() as group:
        group.start_soon(made.kill)
        await anyio.wait_all_tasks_blocked()
        made.wake()
        await made.kill()
    assert made.state().phase == "asleep"


async def test_what_is_wanted_while_it_ends_for_want_of_use_is_woken_after(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminate = Server.terminate

    async def wanted_meanwhile(server: Server) -> None:
        monkeypatch.setattr(Server, "terminate", terminate)
        made.wake()
        await server.terminate()

    made = world.brainstem(await section(idle_s=0.2))
    monkeypatch.setattr(Server, "terminate", wanted_meanwhile)
    await made.settled()
    await world.until(lambda state: state.phase == "waking")
    await world.until(lambda state: state.phase == "ready")


@pytest.mark.parametrize("error", [OSError("no descriptors are left"), ValueError("a fault"), DOWN])
async def test_whatever_goes_wrong_ends_one_start_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def wrong(*_: object) -> str:
        raise error

    monkeypatch.setattr(brainstem, "AGAIN", brainstem.AGAIN._replace(base_s=0.1, max_s=0.1))
    monkeypatch.setattr(Server, "log_tail", wrong)
    good = await section()
    made = world.brainstem(Section(argv=("/bin/sh", "-c", "exit 3"), base_url=good.base_url))
    state = await made.settled()
    assert (state.phase, state.cause) == ("asleep", "failed")
    assert state.why
    made.section = good
    await world.until(lambda state: state.phase == "ready")


async def test_a_server_that_cannot_be_ended_is_no_end_of_anything_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminate = Server.terminate

    async def wrong(server: Server) -> None:
        await terminate(server)
        raise OSError("no descriptors are left")

    monkeypatch.setattr(Server, "terminate", wrong)
    made = world.brainstem(await section())
    await made.settled()
    await made.kill()
    assert made.state().phase == "asleep"
    assert "no descriptors are left" in world.logged.getvalue()


async def test_a_rehearsal_says_what_is_missing(world: World) -> None:
    found = await world.brainstem(Section(weights=NAME), has_mlx=True).rehearse(lambda: False)
    assert (found.problem, found.memory_bytes) == (f"the model {NAME} is not in the cache", None)


def test_the_plan_names_what_is_missing_and_what_it_needs(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"]}
    wanted = Section(argv=("sleep", "{weights}/a.gguf"), weights=NAME)
    missing = plan(wanted, str(tmp_path), environ)
    assert (missing.problem, missing.do) == (f"the model {NAME} is not in the cache", f"omnictl model pull {NAME}")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.gguf").write_bytes(bytes(1000))
    weights = cached(tmp_path / "models", tmp_path / "new")
    found = plan(wanted, str(tmp_path / "models"), environ)
    assert found[:2] == (("sleep", f"{weights.directory}/a.gguf"), GIB + 1000)
    Path(weights.directory, "a.gguf").write_bytes(bytes(999))
    damaged = plan(wanted, str(tmp_path / "models"), environ)
    assert damaged.problem == f"the model {NAME} is damaged: a.gguf"
    named = Section(argv=("sleep", "--model=" + weights.directory), memory_bytes_min=7)
    assert plan(named, "/nowhere", environ).memory_bytes == 7
    size = Path(weights.directory, "manifest.json").stat().st_size + 999
    assert plan(Section(argv=named.argv), "/nowhere", environ).memory_bytes == GIB + size


def test_the_server_of_mlx_is_closed_to_web_pages_and_listens_where_the_config_says(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.safetensors").write_bytes(b"x")
    cached(tmp_path / "models", tmp_path / "new")
    wanted = Section(weights=NAME, base_url="http://127.0.0.1:4321/v1")
    argv = plan(wanted, str(tmp_path / "models"), {"PATH": os.environ["PATH"]}).argv
    given = dict(zip(argv[5::2], argv[6::2], strict=True))
    assert given["--port"] == "4321"
    assert given["--host"] == "127.0.0.1"
    assert given["--allowed-origins"] == "http://127.0.0.1"


async def test_the_real_server_of_mlx_is_woken_answers_and_returns_its_memory(world: World) -> None:
    cached(world.directory / "models", await anyio.to_thread.run_sync(make, world.directory / "new"))
    url = f"http://127.0.0.1:{await free_port()}/v1"
    made = world.brainstem(Section(weights=NAME, base_url=url), has_mlx=True)
    state = await made.settled()
    assert state.phase == "ready", state
    assert state.channel is not None
    assert state.memory_bytes
    ask = Ask("default_model", (Message("user", "Say something."),), 24, stream=True)
    said = await world.direct.call(state.channel, "", ask, WAIT_S)
    assert isinstance(said, Answer), said
    assert said.usage is not None
    assert said.usage.output_tokens
    assert made._server is not None
    pid = made._server.pid
    assert pid is not None
    returned = await made.kill()
    assert returned is not None
    assert returned > 30 << 20
    assert not alive(pid)
