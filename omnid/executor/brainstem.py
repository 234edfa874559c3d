"""The brainstem's process: a local server of an OpenAI-compatible wire, woken when the cloud is gone, killed after.

Killing it is what gives its memory back. It is ready once it has answered, which is later than when it listens.
"""

from collections.abc import Mapping

import anyio
from anyio.abc import TaskGroup

from omnid.channels import whole
from omnid.clock import Clock
from omnid.errors import Retryable
from omnid.executor.direct import Direct
from omnid.executor.environment import BASE_ENVIRONMENT
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.executor.supervised import Server, Supervised
from omnid.log import Logger
from omnid.settings import Brainstem as Section
from omnid.settings import Channel

NAME = "brainstem"
ENVIRONMENT = (*BASE_ENVIRONMENT, "HF_HOME", "HF_HUB_CACHE")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""A model that isn't there is no reason to reach for a network that is gone."""
LOOK_S, ANSWER_S_MAX = 0.5, 30.0
AGAIN_S = 10.0
"""The pause before a server that has ended by itself is started again."""


class Brainstem:
    """Starts, watches and ends the local server; it wakes once, however many ask."""

    def __init__(
        self,
        section: Section,
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
        self._supervised = supervised
        self._environ = environ
        self._direct = direct
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._scope: anyio.CancelScope | None = None
        self._gone = anyio.Event()
        self.channel: Channel | None = None
        """The way to it; None while it is asleep or not ready."""

    @property
    def awake(self) -> bool:
        """Whether it runs or is being started."""
        return self._scope is not None

    def wake(self) -> None:
        """Starts the server, unless it runs or the config has none; waits for nothing."""
        if self._scope is None and self.section.argv:
            self._scope, self._gone = anyio.CancelScope(), anyio.Event()
            self._tasks.start_soon(self._run, self._scope, self._gone)

    async def kill(self) -> None:
        """Ends the server, if it runs."""
        if self._scope is not None:
            self._scope.cancel()
            await self._gone.wait()

    async def _run(self, scope: anyio.CancelScope, gone: anyio.Event) -> None:
        try:
            with scope:
                while True:
                    await self._once()
                    await anyio.sleep(AGAIN_S)
        finally:
            self.channel = self._scope = None
            gone.set()

    async def _once(self) -> None:
        """Runs the server from its start to its end."""
        section, server = self.section, None
        began_s = self._clock.monotonic_s()
        environment = {name: self._environ[name] for name in ENVIRONMENT if name in self._environ}
        try:
            server = await self._supervised.start_server(NAME, section.argv, "/", environment | OFFLINE)
            async with anyio.create_task_group() as group:
                group.start_soon(self._until_ready, section, began_s)
                await _until_end(server)
                group.cancel_scope.cancel()
            self._log.warning("brainstem_ended", detail=(await server.log_tail()).strip()[-500:])
        except Retryable as error:
            self._log.warning("brainstem_no_start", **error.as_dict())
        finally:
            self.channel = None
            if server is not None:
                with anyio.CancelScope(shield=True):
                    await self._end(server)

    async def _until_ready(self, section: Section, began_s: float) -> None:
        channel = whole(
            Channel(
                name=NAME,
                profile="compatible",
                base_url=section.base_url,
                models=(section.model,),
                free=True,
                local=True,
            )
        )
        ask = Ask(section.model, (Message("user", "Say yes."),), 1)
        answer = await self._direct.call(channel, "", ask, ANSWER_S_MAX)
        while not isinstance(answer, Answer):
            await anyio.sleep(LOOK_S)
            answer = await self._direct.call(channel, "", ask, ANSWER_S_MAX)
        self.channel = channel
        self._log.info("brainstem_ready", ms=round(1000 * (self._clock.monotonic_s() - began_s)))

    async def _end(self, server: Server) -> None:
        try:
            await server.terminate()
        except Retryable as error:
            self._log.error("brainstem_no_end", **error.as_dict())
        else:
            self._log.info("brainstem_killed")


async def _until_end(server: Server) -> None:
    try:
        while True:
            await server.receive()
    except anyio.EndOfStream:
        return
