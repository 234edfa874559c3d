"""The brainstem's process: a local server of an OpenAI-compatible wire, woken when the cloud is gone, killed after.

Killing it is what gives its memory back. It is ready once it has answered, which is later than when it listens. Where
too little memory is free it stays asleep, and tries again now and then for as long as somebody wants it.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Literal, NamedTuple, cast
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec import Struct

from omnid import platform
from omnid.channels import BRAINSTEM, whole
from omnid.clock import Clock
from omnid.errors import Retryable
from omnid.executor.direct import Direct
from omnid.executor.environment import BASE_ENVIRONMENT
from omnid.executor.local_model import Plan, plan
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.executor.supervised import Server, Supervised
from omnid.log import Logger
from omnid.retry import Backoff, FailureCount
from omnid.settings import MIB, Channel, ChannelModel
from omnid.settings import Brainstem as Section

ENVIRONMENT = (*BASE_ENVIRONMENT, "HF_HOME", "HF_HUB_CACHE")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""A model that isn't there is no reason to reach for a network that is gone."""
LOOK_S, ANSWER_S_MAX = 0.5, 30.0
AGAIN = Backoff(base_s=10.0, max_s=60.0)
"""The pause before what was missing is looked for again, and before a server that has ended is started again."""
KNOCK_S = 1.0
SLACK_S = 15.0
MEASURE_S = 30.0
"""How often it is looked how much memory the server holds."""

Phase = Literal["none", "asleep", "waking", "ready"]
Cause = Literal["", "idle", "missing", "memory", "occupied", "failed"]


class BrainstemState(Struct, frozen=True):
    """How the local model is; `none`: neither the config nor this installation has one."""

    phase: Phase
    cause: Cause = ""
    """Why it is asleep; empty: nobody wanted it."""
    why: str = ""
    """The same in words."""
    channel: Channel | None = None
    """The way to it, once it is ready."""
    memory_bytes: int | None = None
    """What its process held when that was last looked at."""
    returned_bytes: int | None = None
    """What the last one held when it was killed."""


class Rehearsal(Struct, frozen=True):
    """What came of waking it for a look."""

    problem: str
    """Why it didn't become ready; empty: it did."""
    ready_s: float
    memory_bytes: int | None


class Surroundings(NamedTuple):
    """What the brainstem is told of this machine and of the rest of omnid."""

    root: str
    """The directory of the cache of models."""
    has_mlx: bool = False
    busy: Callable[[], bool] = lambda: False
    """Whether calls to it are open."""
    changed: Callable[[], None] = lambda: None
    """Called at each change of its state; must not block."""
    memory: Callable[[], int] = platform.available_memory_bytes
    """Gives how many bytes of memory are free."""


class Brainstem:
    """Starts, watches and ends the local server; it wakes once, however many ask."""

    def __init__(
        self,
        section: Section,
        around: Surroundings,
        supervised: Supervised,
        environ: Mapping[str, str],
        direct: Direct,
        *,
        tasks: TaskGroup,
        clock: Clock,
        log: Logger,
    ) -> None:
        self.section = section
        """What the config says of it; a changed one holds from the next start on."""
        self._around = around
        self._supervised = supervised
        self._environ = environ
        self._direct = direct
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._scope: anyio.CancelScope | None = None
        self._gone = anyio.Event()
        self._turned = anyio.Event()
        self._phase: Phase = "asleep"
        self._cause: Cause = ""
        self._why = ""
        self._channel: Channel | None = None
        self._server: Server | None = None
        self._held_bytes: int | None = None
        self._returned_bytes: int | None = None
        self._used_at_s = 0.0
        self._failed = FailureCount()
        self._holders = 0
        self._ends = False
        """Whether it is being killed, or ends because nothing uses it."""
        self._wanted_after = False
        """Whether somebody wants it while it ends."""

    @property
    def wanted(self) -> bool:
        """Whether there is to be one: the config names a command, or MLX is installed."""
        return bool(self.section.argv) or self._around.has_mlx

    def state(self) -> BrainstemState:
        """Tells how it is now; asks nobody, and is called from everywhere."""
        if not self.wanted and self._scope is None:
            return BrainstemState("none")
        held = self._held_bytes if self._phase == "ready" and self._server is not None else None
        return BrainstemState(self._phase, self._cause, self._why, self._channel, held, self._returned_bytes)

    def wake(self) -> None:
        """Starts the server, unless it runs or there is none; waits for nothing. Whoever uses it calls this before."""
        self._used_at_s = self._clock.monotonic_s()
        if self._scope is None and self.wanted:
            self._scope, self._gone = anyio.CancelScope(), anyio.Event()
            self._failed = FailureCount()
            self._ends = self._wanted_after = False
            self._turn("waking")
            self._tasks.start_soon(self._run, self._scope, self._gone)
        elif self._ends and not self._wanted_after:
            self._wanted_after = True
            self._turn("waking")

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Keeps it from being killed because nothing uses it."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1

    @property
    def held_by_one(self) -> bool:
        """Whether it has one holder, and no call to it is open: whoever asks is the only one."""
        return self._holders == 1 and not self._around.busy()

    @property
    def in_use(self) -> bool:
        """Whether somebody holds it, or calls to it are open."""
        return self._around.busy() or self._holders > 0

    async def kill(self) -> int | None:
        """Ends the server, if it runs; gives how many bytes of memory that returned, None where it held none."""
        if self._scope is None:
            return None
        had = self._server is not None
        self._ends, self._wanted_after = True, False
        self._channel = None
        self._scope.cancel()
        await self._gone.wait()
        return self._returned_bytes if had else None

    async def plan(self) -> Plan:
        """Looks what would be started now, and whether it can be: also whether there is enough memory for it."""
        found = await anyio.to_thread.run_sync(plan, self.section, self._around.root, self._environ)
        short = "" if found.problem or self._server is not None else await self._too_little(found.memory_bytes)
        return found._replace(problem=short, do="Free some memory, or choose a smaller model.") if short else found

    async def settled(self) -> BrainstemState:
        """Wakes it, and gives its state once it is ready or is known to stay asleep; bounded by its start timeout."""
        self.wake()
        with anyio.move_on_after(self.section.start_timeout_s + SLACK_S):
            while self._phase == "waking":
                await self._turned.wait()
        return self.state()

    async def rehearse(self, needed: Callable[[], bool]) -> Rehearsal:
        """Wakes it for a look, and kills it unless it is `needed` or in use by then, or was awake before."""
        began_s, was_awake = self._clock.monotonic_s(), self._scope is not None
        with self.held():
            state = await self.settled()
        took_s = self._clock.monotonic_s() - began_s
        if not was_awake and not needed() and not self.in_use:
            await self.kill()
        if state.phase == "ready":
            return Rehearsal("", took_s, state.memory_bytes)
        return Rehearsal(state.why or "it was not ready in time", took_s, None)

    async def _run(self, scope: anyio.CancelScope, gone: anyio.Event) -> None:
        """Keeps it running until it is killed, or nothing has used it for a while."""
        idle = False
        try:
            with scope:
                while not (idle := await self._tried()):
                    self._failed = self._failed.failed(self._clock.monotonic_s())
                    await anyio.sleep(AGAIN.delay_s(self._failed.failures, self._clock.uniform))
        finally:
            self._scope = None
            self._turn("asleep", *(("idle", "nothing has used it for a while") if idle else ("", "")))
            gone.set()
            if self._wanted_after:
                self.wake()

    async def _tried(self) -> bool:
        """See `_once`; whatever is raised there ends this start alone: nothing around waits for it."""
        try:
            return await self._once()
        except Exception as error:  # noqa: BLE001 - it runs in the daemon's own group, which would end with it.
            self._fault(error)
        except BaseExceptionGroup as group:
            # Only trio mixes errors with its Cancelled: the errors end here, the cancellation goes on.
            errors, rest = group.split(Exception)
            if errors is not None:
                self._fault(errors)
            if rest is not None:
                raise rest from None
        return False

    def _fault(self, error: Exception) -> None:
        cause = _first(error)
        if isinstance(cause, Retryable):
            self._stays_asleep("failed", str(cause.fields.get("detail", cause.what)))
            return
        self._log.error("brainstem_fault", exc_info=error)
        self._stays_asleep("failed", f"{type(cause).__name__}: {cause}")

    async def _once(self) -> bool:
        """Runs the server from its start to its end; True: it has ended because nothing used it."""
        section = self.section
        found = await self.plan()
        if found.problem:
            self._stays_asleep("memory" if found.argv else "missing", found.problem)
            return False
        began_s = self._clock.monotonic_s()
        environment = {name: self._environ[name] for name in ENVIRONMENT if name in self._environ}
        idle = False
        try:
            await self._supervised.clear_server(BRAINSTEM)
            if await _answers(section.base_url):
                self._stays_asleep("occupied", f"another program is at {section.base_url}")
                return False
            if self._phase != "waking":
                self._turn("waking")
            server = self._server = await self._supervised.start_server(
                BRAINSTEM, found.argv, "/", environment | OFFLINE
            )
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    nonlocal idle
                    idle = self._ends = await self._watch(section, began_s)
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                await _until_end(server)
                self._stays_asleep("failed", await _last_words(server))
                group.cancel_scope.cancel()
        finally:
            self._channel = None
            server, self._server = self._server, None
            if server is not None:
                with anyio.CancelScope(shield=True):
                    await self._end(server)
        return idle

    async def _watch(self, section: Section, began_s: float) -> bool:
        """Waits until it is ready, then until nothing uses it any more; False: it was not ready in time."""
        channel = _channel(section)
        with anyio.move_on_after(section.start_timeout_s) as deadline:
            await self._until_ready(channel, section.model)
        if deadline.cancelled_caught:
            self._stays_asleep("failed", f"it was not ready within {section.start_timeout_s:g} s")
            return False
        self._channel = channel
        self._held_bytes = await self._measure()
        self._used_at_s = self._clock.monotonic_s()
        self._turn("ready")
        self._log.info("brainstem_ready", ms=round(1000 * (self._used_at_s - began_s)))
        while True:
            now_s = self._clock.monotonic_s()
            if self.in_use:
                self._used_at_s = now_s
            if now_s - self._used_at_s >= section.idle_s:
                self._log.info("brainstem_idle", idle_s=section.idle_s)
                return True
            await anyio.sleep(min(self._used_at_s + section.idle_s - now_s, MEASURE_S))
            self._held_bytes = await self._measure()

    async def _until_ready(self, channel: Channel, model: str) -> None:
        ask = Ask(model, (Message("user", "Say yes."),), 1)
        while True:
            said = await self._direct.call(channel, "", ask, ANSWER_S_MAX)
            # A single token may be no text by itself; that it was counted shows that the model is there.
            if isinstance(said, Answer) or said.usage is not None:
                return
            await anyio.sleep(LOOK_S)

    async def _end(self, server: Server) -> None:
        pid = server.pid
        held = None if pid is None else await anyio.to_thread.run_sync(platform.resident_bytes, pid)
        try:
            await server.terminate()
        except Retryable as error:
            self._log.error("brainstem_no_end", **error.as_dict())
        except OSError as error:
            self._log.error("brainstem_no_end", detail=str(error))
        else:
            self._returned_bytes = held or self._returned_bytes
            self._log.info("brainstem_killed", returned_bytes=held)

    async def _measure(self) -> int | None:
        """Looks how much memory the server holds, in a thread: on macOS it is a program that tells."""
        pid = None if self._server is None else self._server.pid
        return None if pid is None else await anyio.to_thread.run_sync(platform.resident_bytes, pid)

    async def _too_little(self, need_bytes: int) -> str:
        try:
            free_bytes = await anyio.to_thread.run_sync(self._around.memory)
        except OSError as error:
            self._log.warning("memory_unknown", detail=str(error))
            return ""
        if free_bytes >= need_bytes:
            return ""
        return f"it needs {need_bytes // MIB} MiB of memory, and only {free_bytes // MIB} are free"

    def _stays_asleep(self, cause: Cause, why: str) -> None:
        if (cause, why) != (self._cause, self._why):
            self._log.warning("brainstem_asleep", cause=cause, detail=why)
        self._turn("asleep", cause, why)

    def _turn(self, phase: Phase, cause: Cause = "", why: str = "") -> None:
        self._phase, self._cause, self._why = phase, cause, why
        turned, self._turned = self._turned, anyio.Event()
        turned.set()
        self._around.changed()


def _channel(section: Section) -> Channel:
    model = ChannelModel(name=section.model, context_tokens=section.context_tokens)
    return whole(
        Channel(name=BRAINSTEM, profile="compatible", base_url=section.base_url, models=(model,), free=True, local=True)
    )


async def _answers(base_url: str) -> bool:
    """Tells whether somebody listens there already, who would be taken for the server."""
    url = urlsplit(base_url)
    with anyio.move_on_after(KNOCK_S):
        try:
            stream = await anyio.connect_tcp(url.hostname or "", url.port or 0)
        except OSError:
            return False
        await stream.aclose()
    return True


def _first(error: BaseException) -> BaseException:
    """Gives the first error inside a group: what a task group raises, even for a single one."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


async def _last_words(server: Server) -> str:
    how = await server.wait_closed()
    tail = (await server.log_tail()).strip()
    return f"{how}; its last words were: {tail[-500:]}" if tail else how


async def _until_end(server: Server) -> None:
    try:
        while True:
            await server.receive()
    except anyio.EndOfStream:
        return
