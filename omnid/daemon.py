"""Puts the house together: chooses the implementations, opens the root task group, and serves until told to end."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from msgspec import Struct

from omnid import __version__, config, links, platform
from omnid.api.handler import SocketHandler
from omnid.api.http import HttpServer
from omnid.api.mcp_server import McpServer
from omnid.api.methods import Api
from omnid.api.shapes import ConfigChecked, ConfigRow, ConfigShown
from omnid.api.socket import SocketServer
from omnid.api.spawn import LOG_NAME
from omnid.clock import Clock, SystemClock
from omnid.errors import OmnidError, Rejected
from omnid.executor.interface import Executor
from omnid.flow.answers import Announcer
from omnid.flow.awake import Awake
from omnid.flow.checks import Checks
from omnid.flow.commands import runner_of
from omnid.flow.context import Context
from omnid.flow.control import Cancelling
from omnid.flow.daily import Daily
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.drain import Drain
from omnid.flow.failover import Failover
from omnid.flow.gates import Gates
from omnid.flow.guard import guard
from omnid.flow.keep import keep
from omnid.flow.lines import Lines
from omnid.flow.mending import Mender
from omnid.flow.mode import ModeKeeper
from omnid.flow.presence import Presence
from omnid.flow.recovery import Recovery
from omnid.flow.results import Results
from omnid.flow.retention import Retention
from omnid.flow.runner import Runner
from omnid.flow.schedules import Schedules
from omnid.flow.snapshots import Snapshots
from omnid.flow.wakeup import Wakeup
from omnid.link import network
from omnid.link.connection import Connection
from omnid.link.destination import Destination
from omnid.link.embedded import EmbeddedLink
from omnid.link.message import RESULTS
from omnid.log import Logger
from omnid.model import Problem
from omnid.parts import End, Parts, dial
from omnid.process import run_logged, say
from omnid.route.rules import remarks
from omnid.route.ways import way_of
from omnid.secrets import Secrets
from omnid.settings import Config
from omnid.settings_links import Link
from omnid.store import journal
from omnid.store.calls import set_zone
from omnid.store.database import DATABASE_NAME, SqliteStore, StoreSettings
from omnid.store.interface import COLLECTIONS, Reader
from omnid.store.schedules import RUNG as SCHEDULES_RUNG
from omnid.store.statedir import StateDir

EXECUTOR_CLOSE_S = 10.0
DAMAGE_SHOWN_MAX = 5


class Daemon:
    """One omnid: everything that lives between a start and a stop."""

    def __init__(
        self,
        loaded: config.Loaded,
        environ: Mapping[str, str],
        clock: Clock,
        log: Logger,
        secrets: Secrets,
        executors: Mapping[str, Executor],
    ) -> None:
        """Opens the store; `executors` are added to those of the config (tests, benchmarks)."""
        settings = loaded.config
        self._loaded = loaded
        self._environ = environ
        self._clock = clock
        self._log = log
        self._secrets = secrets
        self._given = dict(executors)
        self._problem: Problem | None = None
        self._stop = anyio.Event()
        self.pid = os.getpid()
        self.started_at_ms = clock.wall_ms()
        self._parts = Parts(settings, environ, clock, log, secrets)
        supervised = self._parts.supervised
        self.store = SqliteStore(Path(settings.state.dir) / DATABASE_NAME, clock, store_settings(settings))
        self.context = Context(
            store=self.store,
            clock=clock,
            log=log,
            config=settings,
            executors=self._given,
            spool=supervised.spool,
            set_aside=supervised.set_aside,
        )
        self._parts.context = self.context
        self.gates = Gates(self.context)
        self.mender = Mender(self.context, self._parts.gateway)
        self.mode = ModeKeeper(self.context, self._parts.shared, secrets, network.changes)
        self.checks = Checks(self.context, self.gates, self._parts.shared, secrets)
        self.snapshots = Snapshots(self.context)
        self._results = Results(self.context, self.gates)
        self._places = self._parts.places()
        self.drain = Drain(self.context, self._destination)
        self.lines = Lines(self.context, self.gates, self._results, self._connect, self.drain)
        self.drain.caught_up = self.lines.caught_up
        self.presence = Presence(self.context)
        self.cancelling = Cancelling(self.context)
        self.schedules = Schedules(self.context, self.cancelling)
        self.store.rung = self._rung
        self.store.set_follow(Announcer(self.context))
        self.workspaces = self._parts.make_workspaces(settings, self._states)
        self._link = EmbeddedLink()
        self._server: SocketServer | None = None
        self.http: HttpServer | None = None
        self._work: TaskGroup | None = None
        self.extend_mcp: Callable[[Any], None] | None = None
        """See `McpServer.extend`."""

    async def serve(self, *, task_status: TaskStatus["Daemon"] = anyio.TASK_STATUS_IGNORED) -> None:
        """Recovers, then serves until `stop`; `started` once clients can connect. Raises Fatal and Rejected."""
        try:
            async with anyio.create_task_group() as root:
                root.start_soon(self.store.serve)
                async with anyio.create_task_group() as work:
                    await self._open(work)
                    gc.freeze()  # What is loaded by now stays: no collection needs to look at it again.
                    task_status.started(self)
                    await self._stop.wait()
                    await self._wind_down()
                    work.cancel_scope.cancel()
                with anyio.move_on_after(EXECUTOR_CLOSE_S, shield=True):
                    for executor in self.context.executors.values():
                        await executor.aclose()
                    await self._parts.aclose()
                root.cancel_scope.cancel()
        finally:
            self._link.close()
            self.store.close()
            self._log.info("stopped", pid=self.pid)

    def stop(self) -> None:
        """See `methods.Host.stop`."""
        self._stop.set()

    def clients(self) -> int:
        """See `methods.Host.clients`."""
        return self._server.clients if self._server else 0

    def config_rows(self) -> tuple[str, Sequence[tuple[str, Any, str]]]:
        """See `methods.Host.config_rows`."""
        return self._loaded.path, list(self._loaded.rows())

    def config_problems(self) -> list[Problem]:
        """See `methods.Host.config_problems`."""
        return [Problem.of(error) for error in config.check(self._environ, self._loaded.path)]

    def config_remarks(self) -> list[Problem]:
        """See `methods.Host.config_remarks`."""
        return config_remarks(self._environ, self._loaded.path)

    def config_problem(self) -> Problem | None:
        """See `methods.Host.config_problem`."""
        return self._problem

    async def reload(self) -> list[Problem]:
        """See `methods.Host.reload`: takes a changed config over whole, or refuses it whole and says why."""
        problems = self.config_problems()
        if not problems:
            try:
                loaded = config.reload(self._loaded, self._environ)
            except Rejected as error:
                problems = [Problem.of(error)]
            else:
                await self._take_over(loaded)
        self._problem = problems[0] if problems else None
        if self._problem is not None:
            self._log.warning("config_refused", code=self._problem.code, what=self._problem.what)
        return problems

    async def _open(self, work: TaskGroup) -> None:
        """Starts everything in order: recovery before anything new, the socket last."""
        context = self.context
        self._work = work
        context.take_executors({**self._parts.executors(context.config, work, {}), **self._given})
        await self.gates.load()
        await self._take_budget()
        if await self.store.booted_since(platform.boot_id()):
            work.start_soon(self._kept("check", self._check_database))
        else:
            await self.store.remember_boot(platform.boot_id())
        runner = Runner(context, self.gates, self._results)
        recovery = Recovery(context, runner, self._results)
        recovered = await recovery.run(work)
        context.paused_starts = False
        work.start_soon(self._kept("runner", partial(runner.run, work, self._link)))
        work.start_soon(self._kept("channels", self.checks.run))
        dispatcher = Dispatcher(context, self.gates, self._link)
        work.start_soon(self._kept("dispatcher", dispatcher.run))
        work.start_soon(self._kept("failover", Failover(context, dispatcher.room).run))
        work.start_soon(self._kept("wakeup", Wakeup(context, self.gates, self.cancelling).run))
        work.start_soon(self._kept("links", self.lines.run))
        work.start_soon(self._kept("runners", self.lines.tend))
        work.start_soon(self._kept("drain", partial(self.drain.run, work)))
        work.start_soon(self._kept("mode_gateway", self.mender.watch))
        work.start_soon(self._kept("mode_cloud", self.mode.watch_cloud))
        work.start_soon(self._kept("mode_links", self.mode.watch_links))
        work.start_soon(self._kept("mode_local", self.mode.watch_local))
        work.start_soon(self._kept("snapshots", self.snapshots.run))
        work.start_soon(self._kept("awake", Awake(context).run))
        work.start_soon(self._kept("retention", partial(self._clean_up, recovery, Retention(context))))
        work.start_soon(self._kept("workspaces", self.workspaces.run))
        work.start_soon(self._kept("prewarm", self.workspaces.pool.run))
        api = Api(context, self.gates, self.cancelling, self, self.workspaces, self.schedules)
        self._daily = Daily(context, api.night.line)
        work.start_soon(self._kept("daily", self._daily.run))
        work.start_soon(self._kept("state", api.room.watch))
        work.start_soon(self._kept("schedules", self.schedules.run))
        work.start_soon(self._kept("presence", self.presence.run))
        await self._listen(work, api)
        # What clients wait for comes first: the first server that is greeted takes a second of this process.
        work.start_soon(self._kept("executors", partial(self.checks.executors, _to_check(context.config))))
        self._log.info("started", version=__version__, pid=self.pid, recovered=recovered, socket=self._socket_path)

    def _rung(self, name: str) -> None:
        """Hears what committed transactions ring: schedules that are due, and destinations that have something."""
        if name == SCHEDULES_RUNG:
            self.schedules.look()
        else:
            self.drain.ring(name)

    def _destination(self, queue: str) -> Destination | None:
        """Gives the destination of a queue: a runner, or a place for answers and notices."""
        runner = runner_of(queue)
        return self._places.open(queue) if runner is None else self.lines.open(runner)

    def _connect(self, section: Link, changed: Callable[[], None], back: Callable[[float], None]) -> Connection:
        """Makes the daemon's end of a link."""
        made = dial(section, End(self.context.end_name, RESULTS, self.store.node), self._secrets, self._log)
        return Connection(section, made, self._clock, self._log, changed, back)

    async def _states(self, task_ids: Sequence[str]) -> dict[str, str]:
        """Gives the states of those tasks that the journal knows."""

        def find(reader: Reader) -> dict[str, str]:
            return {id: task.state for id in task_ids if (task := journal.task_by_id(reader, id)) is not None}

        return await self.store.read(find)

    async def _clean_up(self, recovery: Recovery, retention: Retention) -> None:
        """Lets go of what is no longer needed; in this order, or what retention forgets would count as unknown."""
        await recovery.tidy()
        await retention.run()

    async def _listen(self, work: TaskGroup, api: Api) -> None:
        settings = self.context.config.socket
        mcp = McpServer(api, __version__, self._clock, self._log, requests_max=settings.requests_max)
        mcp.extend = self.extend_mcp
        handler = SocketHandler(
            api,
            mcp,
            pid=self.pid,
            incarnation=self.store.incarnation,
            message_bytes_max=settings.message_bytes_max,
            presence=self.presence,
        )
        self._server = SocketServer(settings, self._clock, handler, self._log)
        self._closed = anyio.Event()

        async def serve(*, task_status: TaskStatus[None]) -> None:
            try:
                await server.serve(task_status=task_status)
            finally:
                self._closed.set()

        server = self._server
        if self.context.config.http.listen:
            wanted = self.context.config
            self.http = HttpServer(
                wanted,
                mcp,
                api,
                secrets=self._secrets,
                clock=self._clock,
                log=self._log,
                presence=self.presence,
            )
            await self.http.open()
            work.start_soon(partial(guard, "http", self.http.run, log=self._log))
        await work.start(serve)

    async def _wind_down(self) -> None:
        """Lets answers out; commands go on under their supervisors."""
        self.context.paused_starts = True
        self.store.interrupt()
        if self.http is not None:
            self.http.stop()
        if self._server is not None:
            self._server.stop()
            with anyio.move_on_after(self.context.config.daemon.stop_grace_s):
                await self._closed.wait()
                if self.http is not None:
                    await self.http.closed.wait()
                await self.drain.finish()

    def _kept(self, name: str, loop: Callable[[], Any]) -> Callable[[], Any]:
        return partial(keep, name, loop, clock=self._clock, log=self._log)

    @property
    def _socket_path(self) -> str:
        return self.context.config.socket.path

    async def _take_over(self, loaded: config.Loaded) -> None:
        context, work = self.context, self._work
        if work is None:
            return
        before, after = context.config.executors(), loaded.config.executors()
        moved = links.given_away(context.config.remote) ^ links.given_away(loaded.config.remote)
        same = {name for name in before if before[name] == after.get(name) and name not in moved}
        kept = {name: context.executors[name] for name in same}
        gone = {name: context.executors[name] for name in before if name not in kept and name not in self._given}
        executors = {**self._parts.executors(loaded.config, work, kept), **self._given}
        self._parts.configure(loaded.config)
        self._loaded = loaded
        context.config = loaded.config
        context.activity.ring()
        context.take_executors(executors)
        self.mode.look()
        await self._take_budget()
        for executor in gone.values():
            work.start_soon(self._kept("retire", partial(self._retire, executor)))
        fresh = _to_check(loaded.config) - kept.keys()
        work.start_soon(self._kept("executors", partial(self.checks.executors, fresh)))
        self.checks.look()
        context.wake()
        self.lines.configure()
        self.drain.ring_all()
        self._daily.look()
        self.schedules.look()
        self._log.info("config_taken_over", path=loaded.path)

    async def _take_budget(self) -> None:
        """Takes over the zone of days and months, and what the caps of the config allow now."""
        zone = platform.zone(self.context.config.daemon.zone)
        await self.store.write(lambda tx: set_zone(tx, zone), bulk=True)
        await self.gates.look_at_budget(release=True)

    async def _retire(self, executor: Executor) -> None:
        """Closes an executor of an earlier config when its last attempt has ended."""
        await self.context.out_of_use(executor)
        await executor.aclose()

    async def _check_database(self) -> None:
        """After a start of the machine: looks for damage in the background, table by table."""
        for name in (*COLLECTIONS, "change", "blob"):
            found = await self.store.read(lambda reader, name=name: reader.all(f"check_{name}"))
            if found != [("ok",)]:
                lines = [row[0] for row in found][:DAMAGE_SHOWN_MAX]
                self._log.error("database_damaged", table=name, found=lines)
                self.context.damage.append(Problem.make("database_damaged", table=name, detail="; ".join(lines)))
        await self.store.remember_boot(platform.boot_id())
        self._log.info("database_checked")


def _to_check(wanted: Config) -> set[str]:
    """Names the executors that somebody wants; those that are there without any config are probed when they are."""
    return {name for name, section in wanted.executors().items() if section != config.BUILT_IN.get(name)}


def config_remarks(environ: Mapping[str, str], path: str) -> list[Problem]:
    """Gives what is strange about a config that can be used; nothing for one that can't."""
    try:
        wanted = config.load(environ, path).config
    except Rejected:
        return []
    ways = {section.name: way_of(section.kind, section) for section in wanted.executor}
    return remarks(wanted.rule, ways)


def store_settings(wanted: Config) -> StoreSettings:
    """Gives the store's settings of a config."""
    return StoreSettings(
        group_max=wanted.store.group_max,
        group_s=wanted.store.group_ms / 1000,
        wal_bytes_max=wanted.store.wal_bytes_max,
        fullfsync=sys.platform == "darwin",
    )


async def serve(
    loaded: config.Loaded,
    *,
    environ: Mapping[str, str],
    clock: Clock,
    log: Logger,
    secrets: Secrets,
    executors: Mapping[str, Executor] | None = None,
    task_status: TaskStatus[Daemon] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Runs one daemon until its `stop`; raises Rejected where it can't start, and Fatal where it can't go on."""
    daemon = Daemon(loaded, environ, clock, log, secrets, executors or {})
    await daemon.serve(task_status=task_status)


async def _serve_with_signals(
    loaded: config.Loaded, environ: Mapping[str, str], clock: Clock, log: Logger, secrets: Secrets
) -> None:
    """Serves until SIGTERM, SIGINT or the operation `daemon.stop`; SIGHUP takes a changed config over."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as group:

            async def run(*, task_status: TaskStatus[Daemon]) -> None:
                await serve(loaded, environ=environ, clock=clock, log=log, secrets=secrets, task_status=task_status)
                group.cancel_scope.cancel()

            daemon = await group.start(run)
            async for number in signals:
                if number == signal.SIGHUP:
                    await daemon.reload()
                else:
                    daemon.stop()


def main(argv: Sequence[str]) -> int:
    """Runs the daemon in the foreground; gives the exit code."""
    if argv:
        sys.stderr.write("omnid: `omnid run` takes no arguments; settings are in the config (OMNID_CONFIG)\n")
        return 2
    environ = dict(os.environ)
    clock = SystemClock()
    try:
        loaded = config.load(environ)
        with StateDir(Path(loaded.config.state.dir), loaded.config.socket.path):
            return _run(loaded, environ, clock)
    except OmnidError as error:
        return say(error)


def config_without_daemon(action: str) -> int:
    """Writes what the operations `config.check` and `config.show` would answer, for when no daemon runs."""
    environ = dict(os.environ)
    path = platform.config_path(environ)
    answer: Struct
    if action == "check":
        problems = [Problem.of(error) for error in config.check(environ, path)]
        answer = ConfigChecked(path, problems, remarks=config_remarks(environ, path))
    else:
        try:
            answer = ConfigShown(path, [ConfigRow(*row) for row in config.load(environ, path).rows()])
        except Rejected as error:
            return say(error)
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 0


def _run(loaded: config.Loaded, environ: Mapping[str, str], clock: Clock) -> int:
    secrets = Secrets(environ)

    async def serve(log: Logger) -> None:
        await _serve_with_signals(loaded, environ, clock, log, secrets)

    return run_logged(serve, loaded.config, LOG_NAME, clock, secrets)
