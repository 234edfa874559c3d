"""The gateway's process: started once, however many need it, watched, replaced, and ended with whoever started it."""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.abc
import pytest
from msgspec import structs

from omnid.errors import Retryable
from omnid.executor.gateway import Gateway, _Child
from omnid.executor.model_errors import Failure
from omnid.executor.model_wire import Answer
from omnid.executor.supervised import Server, Supervised
from omnid.log import Log
from omnid.settings import Config
from omnid.settings import Gateway as Section
from tests.contract.model_ways import KEY, Clock, ask, channel
from tests.fakes.cloud import Cloud, cloud

WAIT_S = 60.0
WORKER = Path(__file__).parents[1] / "fakes" / "gateway_worker.py"
PLACE = channel("http://127.0.0.1:9/v1", "openai")


class World:
    """A gateway whose worker is a stand-in without LiteLLM."""

    def __init__(self, directory: Path, tasks: anyio.abc.TaskGroup) -> None:
        self.directory = directory
        self.tasks = tasks
        spool = directory / "spool"
        self.supervised = Supervised(
            spool, Clock(), Config().limits, 0.3, redact=lambda text: text.replace(KEY, "[key]")
        )
        self.gateways: list[Gateway] = []
        for name in ("go", "answer"):
            os.mkfifo(directory / name)

    def gateway(self, *behaviour: str, **section: float) -> Gateway:
        program = (sys.executable, "-I", str(WORKER), *behaviour, str(self.directory))
        made = Gateway(
            Config(gateway=Section(**section)),
            str(self.directory / "gw.sock"),
            self.supervised,
            {"PATH": os.environ["PATH"], "SECRET": KEY},
            tasks=self.tasks,
            clock=Clock(),
            log=Log(Clock(), str).logger(),
            program=program,
        )
        self.gateways.append(made)
        return made

    def starts(self) -> int:
        path = self.directory / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
async def world(anyio_backend: str, tmp_path: Path) -> AsyncGenerator[World]:
    async with anyio.create_task_group() as tasks:
        made = World(tmp_path, tasks)
        try:
            yield made
        finally:
            for gateway in made.gateways:
                await gateway.aclose()


async def call(gateway: Gateway, deadline_s: float = WAIT_S) -> Answer | Failure:
    return await gateway.call(PLACE, KEY, ask(stream=True), deadline_s)


async def test_it_starts_with_the_first_call_and_once_for_all(world: World) -> None:
    gateway = world.gateway()
    assert not gateway.running
    assert await gateway.probe() is None
    answers: list[Answer | Failure] = []

    async def one() -> None:
        answers.append(await call(gateway))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
    assert [type(answer) for answer in answers] == [Answer] * 5
    assert world.starts() == 1
    state = await gateway.probe(WAIT_S)
    assert state is not None
    assert state.running == 0


async def test_the_socket_is_for_this_user_only_and_no_key_is_handed_over(world: World) -> None:
    gateway = world.gateway()
    await call(gateway)
    assert (world.directory / "gw.sock").stat().st_mode & 0o777 == 0o600
    state = await gateway.probe(WAIT_S)
    assert state is not None
    for what in ("environ", "cmdline"):
        assert KEY.encode() not in Path(f"/proc/{state.pid}/{what}").read_bytes()


async def test_a_start_that_nobody_waits_for_any_more_goes_on(world: World) -> None:
    gateway = world.gateway("slow")
    failure = await call(gateway, 0.05)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.may_cost) == ("deadline", False), "it is no fault of the gateway"
    await anyio.Path(world.directory / "go").write_text("")
    assert isinstance(await call(gateway), Answer)
    assert world.starts() == 1


@pytest.mark.parametrize(
    ("behaviour", "said"), [("dies", "exit code 3"), ("dies", "no litellm here for [key]"), ("silent", "within")]
)
async def test_one_that_does_not_start_says_why(world: World, behaviour: str, said: str) -> None:
    gateway = world.gateway(behaviour, start_timeout_s=WAIT_S if behaviour == "dies" else 1.0)
    failure = await call(gateway)
    assert isinstance(failure, Failure)
    assert failure.kind == "gateway"
    assert said in failure.detail
    assert KEY not in failure.detail + gateway.last_words
    assert not failure.may_cost
    with pytest.raises(Retryable):
        await gateway.start()


async def test_a_killed_process_fails_its_calls_and_the_next_call_starts_another(world: World) -> None:
    gateway = world.gateway("hangs")
    answers: list[Answer | Failure] = []

    async def one() -> None:
        answers.append(await call(gateway))

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        pid = await open_call(gateway)
        child = child_of(gateway)
        os.kill(pid, signal.SIGKILL)
    (failure,) = answers
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.may_cost) == ("gateway", True)
    with anyio.fail_after(WAIT_S):
        await child.gone.wait()
    assert not gateway.running
    assert await gateway.probe() is None
    assert isinstance(await call(gateway), Answer)
    assert world.starts() == 2


def child_of(gateway: Gateway) -> _Child:
    assert gateway._child is not None
    return gateway._child


async def open_call(gateway: Gateway) -> int:
    """Waits until a call is open in the process, and gives its pid."""
    await gateway.start()
    with anyio.fail_after(WAIT_S):
        while True:
            state = await gateway.probe(WAIT_S)
            if state is not None and state.running:
                return state.pid


async def test_restart_and_kill(world: World) -> None:
    gateway = world.gateway()
    await gateway.start()
    first = await gateway.probe(WAIT_S)
    await gateway.restart()
    second = await gateway.probe(WAIT_S)
    assert first is not None
    assert second is not None
    assert first.pid != second.pid
    await gateway.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(second.pid, 0)
    assert not gateway.running
    await gateway.aclose()
    with pytest.raises(Retryable):
        await gateway.start()


async def test_one_that_has_grown_too_large_is_replaced_without_cutting_a_call(world: World) -> None:
    gateway = world.gateway("large", memory_bytes_max=100_000_000)
    answers: list[Answer | Failure] = []

    async def long() -> None:
        answers.append(await gateway.call(PLACE, KEY, structs.replace(ask(stream=True), model="long"), WAIT_S))

    async with anyio.create_task_group() as group:
        group.start_soon(long)
        first = await open_call(gateway)
        old = child_of(gateway)
        assert isinstance(await call(gateway), Answer)
        assert isinstance(await call(gateway), Answer)
        state = await gateway.probe(WAIT_S)
        assert state is not None
        assert state.pid != first
        assert answers == []
        await anyio.Path(world.directory / "answer").write_text("")
    assert isinstance(answers[0], Answer)
    with anyio.fail_after(WAIT_S):
        await old.gone.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_it_ends_with_whoever_started_it(world: World) -> None:
    gateway = world.gateway()
    await gateway.start()
    state = await gateway.probe(WAIT_S)
    assert state is not None
    child = child_of(gateway)
    assert child.server is not None
    hold = child.server._hold
    assert hold is not None
    # What the system does to a daemon that is killed.
    os.close(hold)
    child.server._hold = None
    with anyio.fail_after(WAIT_S):
        await child.gone.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(state.pid, 0)


async def test_whatever_goes_wrong_in_its_watch_ends_one_process_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail, terminate = Server.log_tail, Server.terminate

    async def wrong(*_: object) -> str:
        raise OSError("no descriptors are left")

    async def ended_and_wrong(server: Server) -> None:
        await terminate(server)
        raise OSError("no descriptors are left")

    monkeypatch.setattr(Server, "log_tail", wrong)
    monkeypatch.setattr(Server, "terminate", ended_and_wrong)
    gateway = world.gateway()
    await gateway.start()
    child = child_of(gateway)
    state = await gateway.probe(WAIT_S)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    with anyio.fail_after(WAIT_S):
        await child.gone.wait()
    monkeypatch.setattr(Server, "log_tail", tail)
    monkeypatch.setattr(Server, "terminate", terminate)
    assert isinstance(await call(gateway), Answer)


async def test_one_whose_start_goes_wrong_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(*_: object) -> str:
        raise OSError("no descriptors are left")

    monkeypatch.setattr(Server, "log_tail", wrong)
    failure = await call(world.gateway("dies"))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.may_cost) == ("gateway", False)
    assert "no descriptors are left" in failure.detail


async def test_a_gateway_that_does_not_keep_the_deadline_is_at_fault(world: World) -> None:
    gateway = world.gateway("hangs")
    await gateway.start()
    failure = await call(gateway, 0.1)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.may_cost) == ("gateway", True)
    assert "deadline" in failure.detail


async def test_a_path_that_is_too_long_is_said_to_be(world: World) -> None:
    gateway = world.gateway()
    gateway._socket_path = "/tmp/" + "x" * 120
    failure = await call(gateway)
    assert isinstance(failure, Failure)
    assert "OMNID_SOCKET" in failure.detail


async def test_the_real_one_answers_its_probe_while_calls_run(anyio_backend: str, tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks, cloud() as fake:
        gateway = Gateway(
            Config(),
            str(tmp_path / "gw.sock"),
            Supervised(tmp_path / "spool", Clock(), Config().limits, 0.3),
            os.environ,
            tasks=tasks,
            clock=Clock(),
            log=Log(Clock(), str).logger(),
        )
        with contextlib.ExitStack() as stack:
            stack.callback(tasks.cancel_scope.cancel)
            await probed_under_load(gateway, fake)
            await gateway.aclose()


async def probed_under_load(gateway: Gateway, fake: Cloud) -> None:
    await gateway.start()
    busy = channel(fake.base_url("until_closed"), "openai")
    async with anyio.create_task_group() as group:
        for _ in range(64):
            group.start_soon(gateway.call, busy, KEY, ask(stream=True), WAIT_S)
        with anyio.fail_after(WAIT_S):
            while True:
                state = await gateway.probe(WAIT_S)
                assert state is not None
                if state.running == 64:
                    break
        assert state.memory_bytes > 50_000_000
        group.cancel_scope.cancel()
    with anyio.fail_after(WAIT_S):
        while True:
            state = await gateway.probe(WAIT_S)
            if state is not None and state.running == 0:
                break
    assert state.calls == 64
