"""Keeps the session with one MCP server: begun when first needed, ended when unused, begun anew after a fault."""

import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from omnid.clock import Clock
from omnid.errors import Retryable
from omnid.executor.environment import gather, names_for, resolved
from omnid.executor.supervised import Supervised
from omnid.loading import loading
from omnid.log import Logger
from omnid.retry import Backoff, FailureCount
from omnid.secrets import Secrets
from omnid.servers import may_go_to
from omnid.settings import McpExecutor as Section

if TYPE_CHECKING:
    from omnid.executor.mcp_http import Endpoint
    from omnid.executor.mcp_session import McpSession
    from omnid.executor.mcp_transport import Transport

START_SLACK_S = 10.0
"""How much longer than its start may take a session is waited for. The SDK is loaded before it begins, and its own
deadline knows what was wrong, which this one doesn't."""
STOP_SLACK_S = 5.0


class Keeper:
    """The sessions of one executor, one at a time; they live in `tasks`, as they outlast the attempt that begins them.

    One that takes no new calls ends with its last one. A server of ours is started again only then; a remote one gets
    its next session meanwhile.
    """

    def __init__(
        self,
        section: Section,
        supervised: Supervised,
        secrets: Secrets,
        environ: Mapping[str, str],
        *,
        tasks: TaskGroup,
        clock: Clock,
        log: Logger,
        nameless: Callable[[], None],
    ) -> None:
        """`nameless` hears of questions of the server that don't say in which call they are asked."""
        self._section = section
        self._supervised = supervised
        self._secrets = secrets
        self._environ = environ
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._nameless = nameless
        self.asks = True
        """Whether somebody hears what servers ask that are started from now on."""
        self._remote = bool(section.url)
        self._host: _Host | None = None
        self._hosts: set[_Host] = set()
        """All that have not ended, the current one among them."""
        self._failures = FailureCount()
        self._backoff = Backoff(section.restart_base_s, section.restart_max_s)
        self._next_start_s = 0.0
        self._closed = False
        self._era = "auto"
        """How the next session begins: see `McpSession.era`."""
        self._clearing, self._cleared = anyio.Lock(), False

    async def session(self) -> "McpSession":
        """Gives the session, and begins one where there is none; raises Retryable as `Executor.probe` does."""
        with anyio.move_on_after(self._section.start_timeout_s + START_SLACK_S):
            while not self._closed:
                host = self._host
                if host is None:
                    await self._wait_out()
                    # Another attempt may have started it meanwhile.
                    if self._host is None:
                        self._host = _Host()
                        self._hosts.add(self._host)
                        self._tasks.start_soon(self._keep, self._host)
                elif host.session is not None and host.session.usable:
                    return host.session
                elif not host.ready.is_set():
                    await host.ready.wait()
                    if host.why is not None:
                        raise host.lacks or self._down(host.why)
                elif self._remote:
                    self._host = None
                else:
                    await host.gone.wait()
            raise self._down("it is being closed")
        raise self._down(f"it was not ready within {self._section.start_timeout_s:g} s")

    @property
    def awake(self) -> bool:
        """Whether a session is there, or about to be."""
        return self._host is not None

    def rest(self) -> None:
        """Ends the session with its last call, where there is one."""
        if self._host is not None and self._host.session is not None:
            self._host.session.retire("it was looked at, and nobody needs it now")

    def worked(self) -> None:
        """Hears that a call was answered, so that the next fault counts as the first."""
        self._failures = self._failures.succeeded()

    async def clear_old(self) -> None:
        """Ends what an earlier daemon left, once: later on, the server that runs is this daemon's own.

        Raises Retryable ``executor_down`` where it doesn't end.
        """
        if self._remote:
            return
        async with self._clearing:
            if not self._cleared:
                await self._supervised.clear_server(self._section.name)
                self._cleared = True

    async def aclose(self) -> None:
        """Ends the sessions, and with them the calls that are open."""
        self._closed = True
        for host in [*self._hosts]:
            if host.session is not None:
                host.session.end("it was closed")
            host.scope.cancel()
            await host.gone.wait()

    async def _wait_out(self) -> None:
        """Waits for the time of the next start; raises Retryable ``executor_down`` where that is far."""
        wait_s = self._next_start_s - self._clock.monotonic_s()
        if wait_s >= self._section.start_timeout_s:
            count = self._failures.failures
            raise self._down(f"it failed {count} times in a row, and is started again in {wait_s:.0f} s")
        if wait_s > 0:
            await anyio.sleep(wait_s)

    async def _keep(self, host: "_Host") -> None:
        """Keeps one session from its start to its end, and never raises for it: other executors share the group."""
        broken, why = False, "it was closed"
        try:
            with host.scope:
                broken, why = await self._serve(host)
        except Retryable as error:
            broken, why = True, str(error.fields.get("detail", error.what))
            if error.code == "secret_missing":
                # The server is not at fault, so it is started as soon as somebody asks again.
                broken, host.lacks = False, error
        except Exception as error:  # noqa: BLE001 - It is logged, and must not end what else lives in the group.
            self._log.exception("mcp_fault", server=self._section.name)
            broken, why = True, f"{type(error).__name__}: {error}"
        finally:
            if broken:
                self._failures = self._failures.failed(self._clock.monotonic_s())
                delay_s = self._backoff.delay_s(self._failures.failures, self._clock.uniform)
                self._next_start_s = self._clock.monotonic_s() + delay_s
            if self._host is host:
                self._host = None
            self._hosts.discard(host)
            host.fail(why)
            host.gone.set()
            self._log.info("mcp_ended", server=self._section.name, why=why, failures=self._failures.failures)

    async def _serve(self, host: "_Host") -> tuple[bool, str]:
        """Begins the session and gives whether it broke, and why it ended."""
        session_type = await anyio.to_thread.run_sync(_load)
        transport = await self._connect()
        try:
            nameless = self._nameless if self.asks else None
            host.session = session = session_type(self._section.name, transport, self._log, nameless, self._era)
            async with anyio.create_task_group() as group:
                group.start_soon(self._announce, host, session)
                await session.serve(self._section.start_timeout_s, self._section.idle_s)
                group.cancel_scope.cancel()
            if not session.started.is_set() or not self._remote:
                self._era = session.era
            why = session.why_ended or "it was retired"
            # Those who wait for the start need not wait for the end.
            host.fail(why)
            return session.broken, why
        finally:
            with anyio.move_on_after(2 * self._supervised.kill_grace_s + STOP_SLACK_S, shield=True):
                await transport.close()

    async def _announce(self, host: "_Host", session: "McpSession") -> None:
        await session.started.wait()
        self._era = session.era
        self._log.info("mcp_started", server=self._section.name, tools=len(session.tools))
        host.ready.set()

    async def _connect(self) -> "Transport":
        """Starts the server, or says how it is reached; raises Retryable(`executor_down`, `secret_missing`)."""
        section = self._section
        if self._remote:
            from omnid.executor.mcp_http import HttpTransport

            return HttpTransport(section.name, await self._endpoint(), self._log)
        from omnid.executor.mcp_transport import StdioTransport

        environment = await gather(section, names_for(section, self._environ), self._environ, self._secrets)
        cwd = section.cwd or self._environ.get("HOME") or "/"
        await self.clear_old()
        return StdioTransport(await self._supervised.start_server(section.name, section.argv, cwd, environment))

    async def _endpoint(self) -> "Endpoint":
        """Resolves what is sent along; it is looked up anew for each session, so that a changed token is found."""
        from omnid.executor.mcp_http import Endpoint

        section = self._section
        url = await resolved(section, "url", section.url, self._secrets)
        if not may_go_to(url, secrets=bool(section.token or section.headers)):
            raise self._down("its url must begin with https:// (http:// is for this machine, or without a token)")
        headers = [(name.lower(), await self._header(name, value)) for name, value in section.headers.items()]
        if section.token:
            headers.append(("authorization", f"Bearer {await self._header('token', section.token)}"))
        tls = await anyio.to_thread.run_sync(self._tls) if section.ca_file or not section.verify else None
        return Endpoint(url, headers, tls, section.connect_timeout_s)

    async def _header(self, name: str, value: str) -> str:
        text = await resolved(self._section, name, value, self._secrets)
        if not all(" " <= letter <= "~" for letter in text):
            # Nothing is said of what it holds instead.
            raise self._down(f"its {name} holds characters that no header can")
        return text.strip()

    def _tls(self) -> ssl.SSLContext:
        """Reads the certificates that are trusted; runs in a thread."""
        try:
            context = ssl.create_default_context(cafile=self._section.ca_file or None)
        except OSError as error:
            detail = f"its ca_file {self._section.ca_file} can't be used ({error.strerror or error})"
            raise self._down(detail) from error
        if not self._section.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor=self._section.name, detail=detail)


class _Host:
    """Where one session lives: what starts with it, and how those that wait for it learn of its start and end."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.session: McpSession | None = None
        self.why: str | None = None
        self.lacks: Retryable | None = None
        """The error where it lacks a secret, which only a person can provide."""
        self.ready = anyio.Event()
        self.gone = anyio.Event()

    def fail(self, why: str) -> None:
        """Tells those who wait for the start why there is none; what has started before is ending."""
        self.why = why
        self.ready.set()


def _load() -> "type[McpSession]":
    """Imports the SDK; runs in a thread."""
    with loading():
        from omnid.executor.mcp_session import McpSession

        return McpSession
