"""`omnid runner`: runs the commands of daemons on other hosts, which come over a link. No socket; a health line."""

import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from omnid import __version__, config, links, patterns
from omnid.clock import Clock, SystemClock
from omnid.config_problems import hint
from omnid.daemon import EXECUTOR_CLOSE_S, store_settings
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.executor.interface import Executor
from omnid.flow.comeback import Comeback
from omnid.flow.context import Bell, Context
from omnid.flow.drain import Drain
from omnid.flow.guard import guard
from omnid.flow.keep import keep
from omnid.flow.recovery import Recovery
from omnid.flow.remote import Place, Remote, held_max
from omnid.link.connection import Connection
from omnid.link.message import COMMANDS
from omnid.log import Logger
from omnid.parts import End, Parts, dial
from omnid.process import run_logged, say
from omnid.secrets import Secrets
from omnid.settings import Config, State
from omnid.settings_links import Link
from omnid.store.database import SqliteStore
from omnid.store.ledger import Ledger
from omnid.store.statedir import StateDir

DIRECTORY = "runner"
"""Where a runner lives in the state directory, so that a daemon may run beside it."""
DATABASE_NAME = "runner.db"
HEALTH = "health"
HEALTH_EVERY_S = 5.0
HEALTH_OLD_S = 30.0
FORGET_EVERY_S = 3600.0
DAY_MS = 86_400_000
USAGE = """\
usage: omnid runner [--link NAME|URL] [--name NAME]   run the commands that come over a link
       omnid runner --health                          print its health; ends with 1 where it isn't well
"""


class Health(msgspec.Struct, frozen=True):
    """What the health line says, as JSON."""

    at_ms: int
    pid: int
    name: str
    link: str
    up: bool
    """Whether the link is up."""
    problem: str | None
    slots: int
    running: int
    owed: int
    """Results that the broker has not confirmed yet."""
    turned_away: int
    """Daemons that are not told how the runner is, because too many are: they send it nothing."""
    refused: int = 0
    """Messages set aside since its start: of another version, wrongly signed, not offered."""
    refused_why: str | None = None
    """The last reason."""
    leaving: bool = False
    """Whether it was told to stop."""


class Options(NamedTuple):
    """What the command line says."""

    link: str = ""
    name: str = ""
    health: bool = False


class RunnerProcess:
    """One runner: everything that lives between a start and a stop."""

    def __init__(
        self, wanted: Config, section: Link, environ: Mapping[str, str], clock: Clock, log: Logger, secrets: Secrets
    ) -> None:
        """Opens the ledger; `wanted` is a config whose state is the runner's own directory."""
        self._wanted = wanted
        self._section = section
        self._clock = clock
        self._log = log
        self._stop = anyio.Event()
        self._leaving = anyio.CancelScope()
        """Around all that a stop waits for."""
        self._made: dict[str, Executor] = {}
        """The executors of the config, offered or not."""
        self._health = Bell()
        self._state = Path(wanted.state.dir)
        self.store = SqliteStore(self._state / DATABASE_NAME, clock, store_settings(wanted))
        self._ledger = Ledger(self.store, log)
        self._parts = Parts(wanted, environ, clock, log, secrets)
        self._parts.asks = False
        supervised = self._parts.supervised
        self.context = Context(
            store=self.store,
            clock=clock,
            log=log,
            config=wanted,
            executors={},
            spool=supervised.spool,
            set_aside=supervised.set_aside,
        )
        self._parts.context = self.context
        name = wanted.runner.name
        end = End(name, COMMANDS, self.store.node, held_max(wanted.daemon.slots_max))
        made = dial(section, end, secrets, log)
        self._connection = Connection(section, made, clock, log, self._changed, self._back)
        self._comeback = Comeback(section.name, clock, log)
        place = Place(wanted.daemon.slots_max, wanted.runner.labels, wanted.runner.beat_s)
        self._remote = Remote(self.context, self._ledger, self._connection, place)
        self._drain = Drain(self.context, self._remote.owed.to)
        self._drain.caught_up = self._comeback.caught_up
        self.store.rung = self._drain.ring

    async def serve(self, *, task_status: TaskStatus["RunnerProcess"] = anyio.TASK_STATUS_IGNORED) -> None:
        """Recovers, then serves until `stop`; raises Fatal and Rejected."""
        try:
            async with anyio.create_task_group() as root:
                root.start_soon(self.store.serve)
                async with anyio.create_task_group() as work:
                    await self._open(work)
                    task_status.started(self)
                    await self._stop.wait()
                    await self._leave()
                    work.cancel_scope.cancel()
                with anyio.move_on_after(EXECUTOR_CLOSE_S, shield=True):
                    for executor in self._made.values():
                        await executor.aclose()
                    await self._parts.aclose()
                root.cancel_scope.cancel()
        finally:
            self.store.close()
            (self._state / HEALTH).unlink(missing_ok=True)
            self._log.info("stopped", pid=os.getpid())

    def stop(self) -> None:
        """Makes `serve` end: in an orderly way, and at once when it is called again."""
        if self._stop.is_set():
            self._leaving.cancel()
        self._stop.set()

    async def _open(self, work: TaskGroup) -> None:
        self._made = self._parts.executors(self._wanted, work, {})
        # All of them: what runs on one that isn't offered any more is looked after to its end.
        self.context.take_executors(self._made)
        remote = self._remote
        recovered = await remote.recover(work)
        self.context.take_executors(self._offered())
        recovery = Recovery(self.context, remote.runner, remote.owed)
        for name, loop in (
            ("take", remote.take),
            ("backlog", remote.backlog.run),
            ("start", partial(remote.start, work)),
            ("beat", remote.beat),
            ("drain", partial(self._drain.run, work)),
            ("link", self._connection.run),
            ("health", self._tell_health),
            ("tidy", partial(self._clean_up, recovery)),
        ):
            work.start_soon(partial(keep, name, loop, clock=self._clock, log=self._log))
        self._log.info(
            "runner_started",
            version=__version__,
            pid=os.getpid(),
            name=self._wanted.runner.name,
            link=self._section.name,
            executors=sorted(self.context.executors),
            recovered=recovered,
        )

    def _offered(self) -> dict[str, Executor]:
        """Gives the executors that new commands may name."""
        offered, sections = self._wanted.runner.executors, self._wanted.executors()
        return {
            name: executor
            for name, executor in self._made.items()
            if links.may_be_offered(sections[name]) and (not offered or name in offered)
        }

    async def _leave(self) -> None:
        """Gives back what has not begun, waits a while for what runs, and lets out what is owed.

        Commands that run longer go on under their supervisors, and the next start adopts them.
        """
        remote, grace_s = self._remote, self._wanted.daemon.stop_grace_s
        with self._leaving:
            with anyio.move_on_after(grace_s):
                await remote.leave()
            self._health.ring()
            with anyio.move_on_after(self._wanted.runner.drain_s):
                await remote.idle.wait()
            with anyio.move_on_after(grace_s):
                await guard("flush", self._drain.flush, log=self._log)
        running, unsent = len(self.context.running), await self._ledger.owed()
        self._log.info("drained", given_back=remote.given_back, running=running, unsent=unsent)

    def _changed(self) -> None:
        """The link has gone up or down, or is full or not: what is owed may go out now."""
        if self._connection.problem is not None:
            self._remote.link_down()
            self._comeback.gone(self._behind())
        else:
            self._remote.backlog.link_changed(up=True)
        self.context.activity.ring()  # With room at the broker it may have got its name, and begin what it holds.
        self._drain.ring_all()
        self._health.ring()

    def _back(self, down_s: float) -> None:
        self._comeback.back(down_s, self._behind())

    def _behind(self) -> dict[str, int]:
        """Gives the daemons whose results could not be sent."""
        return self._drain.behind(self._drain.queues())

    async def _tell_health(self) -> None:
        """Writes the health line, regularly and whenever the link changes."""
        path = self._state / HEALTH
        while True:
            problem = self._connection.problem
            line = Health(
                at_ms=self._clock.wall_ms(),
                pid=os.getpid(),
                name=self._wanted.runner.name,
                link=self._section.name,
                up=problem is None,
                problem=None if problem is None else problem.what,
                slots=self._wanted.daemon.slots_max,
                running=len(self.context.running),
                owed=await self._ledger.owed(),
                turned_away=self._remote.turned_away,
                refused=self._remote.refused.total,
                refused_why=self._remote.refused.why,
                leaving=self._remote.leaving,
            )
            fresh = path.with_suffix(".new")
            try:
                fresh.write_bytes(msgspec.json.encode(line) + b"\n")
                fresh.replace(path)
            except OSError as error:  # A full disk, say: what is told is old meanwhile, and counts as unwell.
                raise Retryable("state_unwritable", path=self._state, detail=error.strerror) from error
            with anyio.move_on_after(HEALTH_EVERY_S):
                await self._health.wait()

    async def _clean_up(self, recovery: Recovery) -> None:
        """Sets aside what the ledger doesn't know, then forgets what ended long ago, again and again."""
        await recovery.tidy()
        kept = self._wanted.retention
        while True:
            before_ms = self._clock.wall_ms() - round(kept.finished_days * DAY_MS)
            while gone := await self._ledger.forget(before_ms, kept.finished_max, self._remote.held_ids()):
                for attempt_id in gone:
                    await self.context.spool.remove(attempt_id)
            await anyio.sleep(FORGET_EVERY_S)


def chosen(wanted: Config, options: Options) -> tuple[Config, Link]:
    """Gives the config of a runner and its link, as the command line and the config have them.

    Raises Rejected: `option_bad_value` where the command line names what can't be used, `config_bad_value` where
    nothing names a link.
    """
    section = _section(wanted, options.link)
    name = options.name or wanted.runner.name or _host_name()
    if links.END_NAME.fullmatch(name) is None:
        detail, shown = "it is no name of a runner", repr(name)[:100]
        raise Rejected(
            "option_bad_value", option="--name", value=shown, detail=detail, wanted=patterns.SAID[patterns.NAME]
        )
    directory = str(Path(wanted.state.dir) / DIRECTORY)
    return (
        msgspec.structs.replace(
            wanted,
            state=State(dir=directory),
            socket=msgspec.structs.replace(wanted.socket, path=f"{directory}/omnid.sock"),
            runner=msgspec.structs.replace(wanted.runner, name=name),
            remote=(),  # Those of the daemon that may share this config.
        ),
        section,
    )


def _section(wanted: Config, option: str) -> Link:
    """Gives the link that the command line names, or else the config."""
    known = {section.name: section for section in wanted.link}
    link = option or wanted.runner.link
    if link in known:
        return known[link]
    names = f"the name of a [[link]] of the config ({', '.join(known) or 'it has none'})"
    if not link:
        detail = f"it is {names}, and --link takes the URL of a broker too"
        raise Rejected("config_bad_value", key="runner.link", value="(not set)", detail=detail)
    # The URL may have a password in it, and what is no name may be such a URL, mistyped.
    shown = link if links.END_NAME.fullmatch(link) else "(hidden)"
    detail = f"the config has no [[link]] of that name{hint(link, list(known))}"
    if "://" in link:
        section = Link(name=DIRECTORY, url=link)
        wrong = next((detail for _, detail in links.problems(section)), None)
        if wrong is None:
            return section
        detail = wrong
    takes = f"{names}, or the URL of a broker"
    raise Rejected("option_bad_value", option="--link", value=shown, detail=detail, wanted=takes)


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", socket.gethostname().lower()).strip("._-")[:64]
    return name or "runner"


def parsed(argv: Sequence[str]) -> Options | None:
    """Reads the command line; None where it can't be understood."""
    options, words = Options(), list(argv)
    while words:
        match words.pop(0).partition("="):
            case ("--health", "", _):
                options = options._replace(health=True)
            case ("--link" | "--name" as flag, equals, value):
                given = value if equals or not words else words.pop(0)
                if not given:  # A variable of the shell that isn't set is no choice.
                    return None
                options = options._replace(**{flag.removeprefix("--"): given})
            case _:
                return None
    return options


def main(argv: Sequence[str]) -> int:
    """Runs a runner in the foreground, or prints its health; gives the exit code."""
    options = parsed(argv)
    if options is None:
        sys.stderr.write(USAGE)
        return 2
    environ = dict(os.environ)
    try:
        loaded = config.load(environ)
        if options.health:
            return _say_health(Path(loaded.config.state.dir) / DIRECTORY)
        wanted, section = chosen(loaded.config, options)
        with StateDir(Path(wanted.state.dir)):
            return _run(wanted, section, environ, SystemClock())
    except OmnidError as error:
        return say(error)


def _run(wanted: Config, section: Link, environ: Mapping[str, str], clock: Clock) -> int:
    secrets = Secrets(environ)

    async def serve(log: Logger) -> None:
        await _serve_with_signals(wanted, section, environ, clock, log, secrets)

    return run_logged(serve, wanted, "runner.log", clock, secrets)


async def _serve_with_signals(
    wanted: Config, section: Link, environ: Mapping[str, str], clock: Clock, log: Logger, secrets: Secrets
) -> None:
    """Serves until SIGTERM or SIGINT; the second one ends what the first waits for."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:

            async def run(*, task_status: TaskStatus[RunnerProcess]) -> None:
                await RunnerProcess(wanted, section, environ, clock, log, secrets).serve(task_status=task_status)
                group.cancel_scope.cancel()

            runner = await group.start(run)
            async for _ in signals:
                runner.stop()


def _say_health(directory: Path) -> int:
    """Prints the health line; 0 where a runner lives, has written it lately, and its link is up."""
    try:
        text = (directory / HEALTH).read_text(encoding="utf-8")
        line = msgspec.json.decode(text, type=Health)
    except (OSError, msgspec.MsgspecError):
        sys.stderr.write(f"omnid: no runner lives in {directory}\n")
        return 1
    sys.stdout.write(text)
    fresh = SystemClock().wall_ms() - line.at_ms < 1000 * HEALTH_OLD_S
    return 0 if fresh and line.up else 1
