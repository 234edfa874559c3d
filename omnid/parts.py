"""Chooses implementations: makes the executors and the destinations of a config, and what they are made of."""

import importlib.util
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from anyio.abc import TaskGroup

from omnid import links, platform
from omnid.channels import BRAINSTEM
from omnid.clock import Clock
from omnid.errors import Rejected, Retryable
from omnid.executor.brainstem import Brainstem, Surroundings
from omnid.executor.command import CommandExecutor
from omnid.executor.direct import Direct
from omnid.executor.elsewhere import Elsewhere
from omnid.executor.environment import BASE_ENVIRONMENT
from omnid.executor.gateway import Gateway
from omnid.executor.interface import Executor
from omnid.executor.mcp import McpExecutor
from omnid.executor.model import ModelExecutor, Ways
from omnid.executor.supervised import Supervised
from omnid.executor.workspace import Workspaces
from omnid.flow.context import Context
from omnid.flow.mode import Shared
from omnid.flow.model_calls import ModelCalls
from omnid.flow.places import Places
from omnid.link.apprise import AppriseDestination
from omnid.link.command import CommandDestination
from omnid.link.desktop import VARIABLES, DesktopDestination, find_desktop
from omnid.link.destination import Destination
from omnid.link.endpoint import Endpoint, Holder
from omnid.link.interface import Link, Message
from omnid.link.message import Codec
from omnid.link.openclaw import OpenClawDestination
from omnid.link.rabbitmq import RabbitLink
from omnid.link.redis import RedisLink
from omnid.link.webhook import WebhookDestination
from omnid.log import Logger
from omnid.secrets import Secrets
from omnid.settings import Config
from omnid.settings import Destination as DestinationSection
from omnid.settings import McpExecutor as McpSection
from omnid.settings import ModelExecutor as ModelSection
from omnid.settings_links import Link as LinkSection

LEASE_PINGS = 3
"""How many pings in a row may fail before the name of an end is free."""
_OF_PROGRAMS = frozenset({*BASE_ENVIRONMENT, *VARIABLES})
"""What of the daemon's environment goes to the programs that deliver answers and notices."""


class End(NamedTuple):
    """One end of a link, as the program has it: its name, and what it takes."""

    name: str
    takes: Mapping[str, type[Message]]
    journal: str
    """The id of the journal or the ledger behind it."""
    held_max: int = 0
    """How many messages it takes before it acknowledges them."""


def dial(section: LinkSection, end: End, secrets: Secrets, log: Logger) -> Callable[[], Awaitable[Link]]:
    """Gives what makes an end of a link, with its secrets as they are when it is dialled."""
    holder = Holder(end.journal, f"{socket.gethostname()}, process {os.getpid()}")
    lease_s = LEASE_PINGS * section.ping_every_s + section.timeout_s

    async def made() -> Link:
        password, key = [await secrets.resolve(one) if one else "" for one in (section.password, section.key)]
        accepted = [await secrets.resolve(one) for one in section.accepted_keys]
        endpoint = Endpoint(
            Codec(section.name, end.name, end.takes, key, accepted),
            section.url,
            section.user,
            password,
            section.ca,
            section.timeout_s,
            section.batch_max,
            holder,
            lease_s,
            end.held_max,
        )
        kind = RedisLink if section.url.startswith("redis") else RabbitLink
        return kind(endpoint, log)

    return made


class Models(NamedTuple):
    """What all model executors share."""

    gateway: Gateway
    direct: Direct
    brainstem: Brainstem
    calls: ModelCalls


class Parts:
    """Makes what a config names; `context` is set once there is one."""

    context: Context
    workspaces: Workspaces | None = None
    """Where agents work; a runner has none."""
    asks = True
    """Whether somebody hears what MCP servers ask; on a runner nobody does."""

    def __init__(self, wanted: Config, environ: Mapping[str, str], clock: Clock, log: Logger, secrets: Secrets) -> None:
        self._environ = environ
        self._clock = clock
        self._log = log
        self._secrets = secrets
        self._of_programs = {name: value for name, value in environ.items() if name in _OF_PROGRAMS}
        self._models: Models | None = None
        self._state = Path(wanted.state.dir)
        spool, grace_s = self._state / "spool", wanted.task.kill_grace_s
        self.supervised = Supervised(spool, clock, wanted.limits, grace_s, redact=secrets.redact)

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
        made = Workspaces(directory, wanted.workspace, self._environ, self._clock, self._log, states)
        self.workspaces = made
        return made

    def configure(self, wanted: Config) -> None:
        """Takes over what a changed config says to parts that go on."""
        self.supervised.spool.configure(wanted.limits)
        self.supervised.kill_grace_s = wanted.task.kill_grace_s
        if self.workspaces is not None:
            self.workspaces.configure(wanted.workspace)
        if self._models is not None:
            self._models.gateway.configure(wanted)
            self._models.direct.configure(wanted.models)
            self._models.brainstem.section = wanted.brainstem

    def shared(self) -> Shared | None:
        """Gives what model executors share, where there are any."""
        return None if self._models is None else Shared(*self._models[:3])

    def gateway(self) -> Gateway | None:
        """Gives the gateway, where there are model executors."""
        return None if self._models is None else self._models.gateway

    async def aclose(self) -> None:
        """Ends what the executors shared."""
        if self._models is not None:
            await self._models.brainstem.kill()
            await self._models.gateway.aclose()
            await self._models.direct.aclose()

    def executors(self, wanted: Config, work: TaskGroup, kept: Mapping[str, Executor]) -> dict[str, Executor]:
        """Makes the executors of a config; those in `kept` are unchanged and go on."""
        made: dict[str, Executor] = {}
        away = links.given_away(wanted.remote)
        for name, section in wanted.executors().items():
            if name in kept:
                made[name] = kept[name]
            elif isinstance(section, McpSection):
                made[name] = mcp = McpExecutor(
                    section,
                    self.supervised,
                    self._secrets,
                    self._environ,
                    tasks=work,
                    clock=self._clock,
                    log=self._log,
                    limits=wanted.limits,
                )
                if not self.asks:
                    mcp.asks_nobody()
            elif isinstance(section, ModelSection):
                made[name] = self._model(section, wanted, work)
            else:
                made[name] = CommandExecutor(
                    section,
                    self.supervised,
                    self._secrets,
                    self._environ,
                    log=self._log,
                    zone=lambda: self.context.zone,
                    workspaces=self.workspaces,
                )
            if name in away and name not in kept:
                made[name] = Elsewhere(made[name])
        return made

    def _model(self, section: ModelSection, wanted: Config, work: TaskGroup) -> ModelExecutor:
        models = self._models
        if models is None:
            models = self._models = self._make_models(wanted, work)
        return ModelExecutor(
            section,
            Ways(models.calls, models.gateway, models.direct),
            self._secrets,
            self.supervised.spool,
            tasks=work,
            clock=self._clock,
            log=self._log,
            limits=wanted.limits,
        )

    def _make_models(self, wanted: Config, work: TaskGroup) -> "Models":
        """Makes what all model executors share; LiteLLM need not be there."""
        gateway = Gateway(
            wanted,
            f"{wanted.socket.path}.gw",
            self.supervised,
            self._environ,
            tasks=work,
            clock=self._clock,
            log=self._log,
        )
        has_gateway = importlib.util.find_spec("litellm") is not None
        direct = Direct(self._clock, wanted.models)
        calls = ModelCalls(self.context, has_gateway=has_gateway)
        given = wanted.brainstem.dir
        around = Surroundings(
            root=platform.absolute(given, self._environ) if given else str(self._state / "models"),
            has_mlx=importlib.util.find_spec("mlx_lm") is not None,
            busy=lambda: calls.busy(BRAINSTEM),
            changed=self._local_changed,
        )
        brainstem = Brainstem(
            wanted.brainstem,
            around,
            self.supervised,
            self._environ,
            direct,
            tasks=work,
            clock=self._clock,
            log=self._log,
        )
        return Models(gateway, direct, brainstem, calls)

    def _local_changed(self) -> None:
        self.context.modes.local_changed.set()

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
