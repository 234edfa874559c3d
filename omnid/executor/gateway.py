"""The gateway's process: started when it is first needed, kept, replaced when it has grown too large, ended with us.

A start goes on when the call that wanted it has given up, so that the next one finds it ready. A process that holds too
much memory takes no new calls; another takes its place while its last calls end, so that none is cut.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence

import anyio
import anyio.abc

from omnid.clock import Clock
from omnid.errors import Retryable
from omnid.executor.environment import BASE_ENVIRONMENT
from omnid.executor.gateway_client import GatewayClient, GatewayState, OnText
from omnid.executor.model_errors import Failure, Signs, classify
from omnid.executor.model_wire import Answer, Ask
from omnid.executor.supervised import Server, Supervised
from omnid.executor.workers import argv_of
from omnid.log import Logger
from omnid.platform import SOCKET_PATH_BYTES_MAX
from omnid.settings import Channel, Config
from omnid.worker import gateway as worker

PROGRAM = argv_of(worker)
NAMES = ("gateway", "gateway-2")
"""The places of two processes: one that works and one that ends."""
ENVIRONMENT = (*BASE_ENVIRONMENT, "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
PROBE_S = 1.0


class Gateway:
    """Calls channels through LiteLLM, in a process that it starts, watches and ends."""

    def __init__(
        self,
        config: Config,
        socket_path: str,
        supervised: Supervised,
        environ: Mapping[str, str],
        *,
        tasks: anyio.abc.TaskGroup,
        clock: Clock,
        log: Logger,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._config = config
        self._socket_path = socket_path
        self._supervised = supervised
        self._environ = environ
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._program = program
        self._child: _Child | None = None
        self._ending: list[_Child] = []
        self._turn = 0
        self._last = ""
        self._closed = False

    def configure(self, config: Config) -> None:
        """Takes over a changed config; a process that runs keeps the time limits that it was started with."""
        self._config = config

    @property
    def running(self) -> bool:
        """Whether a process is there that takes calls, or is about to: probes make sense only then."""
        return self._child is not None

    @property
    def ready(self) -> bool:
        """Whether a process is there that should answer a probe."""
        return self._child is not None and self._child.started.is_set()

    async def call(
        self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: OnText | None = None
    ) -> Answer | Failure:
        """Asks a model and gives its answer, or what its failure means; see `Direct.call`. The start counts too."""
        began_s = self._clock.monotonic_s()
        try:
            with anyio.fail_after(deadline_s):
                child = await self._ready()
        except TimeoutError:
            # A start that is under way is no fault: `start_timeout_s` says how long it may take.
            signs = Signs(what="deadline", detail="the gateway was still starting", sent=False)
            return classify(signs, self._clock.wall_ms())
        except Retryable as error:
            return self._failure(str(error.fields.get("detail", error.what)))
        with child.held():
            left_s = max(0.0, deadline_s - (self._clock.monotonic_s() - began_s))
            answer = await child.client.call(channel, key, ask, left_s, on_text)
        self._look_at_memory(child)
        return answer

    async def probe(self, timeout_s: float = PROBE_S) -> GatewayState | None:
        """Asks the process how it is, on a connection of its own; None where it doesn't answer, or isn't there."""
        child = self._child
        if child is None or not child.started.is_set():
            return None
        return await child.client.probe(timeout_s)

    async def start(self) -> None:
        """Starts the process unless it runs; raises Retryable ``executor_down``. The caller sets the deadline."""
        await self._ready()

    async def restart(self) -> None:
        """Ends the process, with the calls that are open in it, and starts another; raises as `start` does."""
        await self.kill()
        await self._ready()

    async def kill(self) -> None:
        """Ends the process, with the calls that are open in it; the next call starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.scope.cancel()
            await child.gone.wait()

    @property
    def last_words(self) -> str:
        """What the last process that ended by itself wrote to its standard error, the end of it."""
        return self._last

    async def aclose(self) -> None:
        """Ends all processes; no other is started after that."""
        self._closed = True
        await self.kill()
        for child in list(self._ending):
            child.scope.cancel()
            await child.gone.wait()

    async def _ready(self) -> "_Child":
        """Gives the process that takes calls, once it does."""
        if self._closed:
            raise self._down("omnid is stopping")
        child = self._child
        if child is None:
            self._turn += 1
            place = self._turn % len(NAMES)
            path = self._socket_path + ("" if place else ".2")
            if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
                raise self._down(f"the path of its socket, {path}, is too long: set OMNID_SOCKET to a shorter one")
            child = self._child = _Child(NAMES[place - 1], GatewayClient(path, self._clock, self._config.models))
            self._tasks.start_soon(self._run, child)
        await child.settled.wait()
        if child.problem is not None:
            raise child.problem
        return child

    async def _run(self, child: "_Child") -> None:
        """Runs a process from its start to its end."""
        try:
            with child.scope:
                await self._keep(child)
        except Exception as error:  # noqa: BLE001 - it runs in the daemon's own group, which would end with it.
            self._fault(child, error)
        except BaseExceptionGroup as group:
            # Only trio mixes errors with its Cancelled: the errors end here, the cancellation goes on.
            errors, rest = group.split(Exception)
            if errors is not None:
                self._fault(child, errors)
            if rest is not None:
                raise rest from None
        finally:
            if self._child is child:
                self._child = None
            if child in self._ending:
                self._ending.remove(child)
            with anyio.CancelScope(shield=True):
                await self._end(child)
            child.problem = child.problem or self._down("it was ended")
            child.settled.set()
            child.gone.set()

    def _fault(self, child: "_Child", error: Exception) -> None:
        self._log.error("gateway_fault", exc_info=error)
        child.problem = self._down(f"{type(error).__name__}: {error}")

    async def _keep(self, child: "_Child") -> None:
        began_s = self._clock.monotonic_s()
        try:
            with anyio.fail_after(self._config.gateway.start_timeout_s):
                environment = {name: self._environ[name] for name in ENVIRONMENT if name in self._environ}
                argv = (*self._program, child.client.path)
                child.server = await self._supervised.start_server(child.name, argv, "/", environment)
                await _until_ready(child.server)
        except TimeoutError:
            child.problem = self._down(f"it was not ready within {self._config.gateway.start_timeout_s:g} s")
        except anyio.EndOfStream:
            child.problem = self._down(await self._last_words(child))
        except Retryable as error:
            child.problem = error
        if child.problem is not None or child.server is None:
            self._log.warning("gateway_no_start", problem=None if child.problem is None else child.problem.as_dict())
            return
        child.started.set()
        child.settled.set()
        self._log.info("gateway_started", pid=child.server.pid, ms=round(1000 * (self._clock.monotonic_s() - began_s)))
        async with anyio.create_task_group() as group:
            group.start_soon(self._until_idle, child, group.cancel_scope)
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    await child.server.receive()
            self._log.warning("gateway_ended", detail=await self._last_words(child))
            group.cancel_scope.cancel()

    async def _until_idle(self, child: "_Child", scope: anyio.CancelScope) -> None:
        """Ends a process that was replaced with its last call."""
        await child.retired.wait()
        await child.idle.wait()
        self._log.info("gateway_replaced", name=child.name)
        scope.cancel()

    async def _end(self, child: "_Child") -> None:
        await child.client.aclose()
        if child.server is not None:
            try:
                await child.server.terminate()
            except Retryable as error:
                self._log.error("gateway_no_end", problem=error.as_dict())
            except OSError as error:
                self._log.error("gateway_no_end", detail=str(error))
        with contextlib.suppress(OSError):  # Whatever lies there that is no socket, the next start complains of.
            await anyio.Path(child.client.path).unlink()

    async def _last_words(self, child: "_Child") -> str:
        if child.server is None:
            return "it never started"
        how = await child.server.wait_closed()
        tail = self._last = (await child.server.log_tail()).strip()
        return f"{how}; its last words were: {tail[-500:]}" if tail else how

    def _look_at_memory(self, child: "_Child") -> None:
        limit_bytes = self._config.gateway.memory_bytes_max
        if child is self._child and child.client.memory_bytes > limit_bytes and not self._ending:
            self._log.info("gateway_too_large", memory_bytes=child.client.memory_bytes, limit_bytes=limit_bytes)
            self._child = None
            self._ending.append(child)
            child.retired.set()

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor="gateway", detail=detail)

    def _failure(self, detail: str) -> Failure:
        return classify(Signs(what="gateway", detail=detail, sent=False), self._clock.wall_ms())


class _Child:
    """One process, from before its start to after its end."""

    def __init__(self, name: str, client: GatewayClient) -> None:
        self.name = name
        self.client = client
        self.server: Server | None = None
        self.problem: Retryable | None = None
        self.scope = anyio.CancelScope()
        self.settled, self.started, self.retired, self.gone = (anyio.Event() for _ in range(4))
        self.idle = anyio.Event()
        self.idle.set()
        self._open = 0

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Keeps a process that was replaced until the call has ended."""
        self._open += 1
        if self.idle.is_set():
            self.idle = anyio.Event()
        try:
            yield
        finally:
            self._open -= 1
            if self._open == 0:
                self.idle.set()


async def _until_ready(server: Server) -> None:
    said = b""
    while b"ready\n" not in said:
        said = (said + await server.receive())[-100:]
