"""Chooses implementations: makes the executors and the destinations of a config, and what they are made of."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyio.abc import TaskGroup

from omnid import platform
from omnid.clock import Clock
from omnid.errors import Rejected, Retryable
from omnid.executor.command import CommandExecutor
from omnid.executor.environment import BASE_ENVIRONMENT
from omnid.executor.interface import Executor
from omnid.executor.mcp import McpExecutor
from omnid.executor.supervised import Supervised
from omnid.executor.workspace import Workspaces
from omnid.flow.context import Context
from omnid.flow.places import Places
from omnid.link.apprise import AppriseDestination
from omnid.link.command import CommandDestination
from omnid.link.desktop import VARIABLES, DesktopDestination, find_desktop
from omnid.link.destination import Destination
from omnid.link.openclaw import OpenClawDestination
from omnid.link.webhook import WebhookDestination
from omnid.log import Logger
from omnid.secrets import Secrets
from omnid.settings import Config
from omnid.settings import Destination as DestinationSection
from omnid.settings import McpExecutor as McpSection

_OF_PROGRAMS = frozenset({*BASE_ENVIRONMENT, *VARIABLES})
"""What of the daemon's environment goes to the programs that deliver answers and notices."""


class Parts:
    """Makes what a config names; `context` is set once there is one."""

    context: Context

    def __init__(self, wanted: Config, environ: Mapping[str, str], clock: Clock, log: Logger, secrets: Secrets) -> None:
        self._environ = environ
        self._clock = clock
        self._log = log
        self._secrets = secrets
        self._of_programs = {name: value for name, value in environ.items() if name in _OF_PROGRAMS}
        self._state = Path(wanted.state.dir)
        self.supervised = Supervised(self._state / "spool", clock, wanted.limits, wanted.task.kill_grace_s)

    def places(self) -> Places:
        """Makes the places that answers and notices go to."""
        desktop = DesktopDestination(find_desktop(self._environ), self._of_programs, self._log)
        return Places(lambda: self.context.config, self._clock, self._destination, desktop)

    def make_workspaces(
        self, wanted: Config, states: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]
    ) -> Workspaces:
        """Makes where agents work; `states` gives the states of tasks that the journal knows."""
        given = wanted.workspace.dir
        directory = Path(platform.absolute(given, self._environ)) if given else self._state / "workspaces"
        self.workspaces = Workspaces(directory, wanted.workspace, self._environ, self._clock, self._log, states)
        return self.workspaces

    def configure(self, wanted: Config) -> None:
        """Takes over what a changed config says to parts that go on."""
        self.supervised.spool.configure(wanted.limits)
        self.supervised.kill_grace_s = wanted.task.kill_grace_s
        self.workspaces.configure(wanted.workspace)

    def executors(self, wanted: Config, work: TaskGroup, kept: Mapping[str, Executor]) -> dict[str, Executor]:
        """Makes the executors of a config; those in `kept` are unchanged and go on."""
        made: dict[str, Executor] = {}
        for name, section in wanted.executors().items():
            if name in kept:
                made[name] = kept[name]
            elif isinstance(section, McpSection):
                made[name] = McpExecutor(
                    section,
                    self.supervised,
                    self._secrets,
                    self._environ,
                    tasks=work,
                    clock=self._clock,
                    log=self._log,
                    limits=wanted.limits,
                )
            else:
                made[name] = CommandExecutor(
                    section,
                    self.supervised,
                    self._secrets,
                    self._environ,
                    zone=lambda: self.context.zone,
                    workspaces=self.workspaces,
                )
        return made

    def _destination(self, section: DestinationSection) -> Destination:
        match section.kind:
            case "webhook":
                return WebhookDestination(section, self._secrets, self._clock)
            case "openclaw":
                return OpenClawDestination(section, self._of_programs, self._call_tool)
            case "apprise":
                return AppriseDestination(section, self._secrets, self._of_programs)
            case "command":
                return CommandDestination(section, self._of_programs)

    async def _call_tool(self, name: str, tool: str, arguments: dict[str, Any], id: str) -> None:
        """See `openclaw.Call`: calls a tool of an mcp executor."""
        executor = self.context.executors.get(name)
        if not isinstance(executor, McpExecutor):
            raise Rejected("delivery_refused", destination=name, detail="the config has no mcp executor of that name")
        answer = await executor.call_tool(tool, arguments, id)
        if answer.kind == "refused":
            raise Rejected("delivery_refused", destination=name, detail=answer.text)
        if answer.kind != "done":
            raise Retryable("delivery_failed", destination=name, detail=answer.text)
