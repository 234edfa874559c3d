"""An executor whose work is done by runners on other hosts: here it is only looked at, and never called."""

from msgspec import structs

from omnid.errors import Rejected, Retryable
from omnid.executor.interface import Executor, Found, Ports
from omnid.model import Command, Result, Work


class Elsewhere:
    """See `interface.Executor`: it takes what the executor `here` of the same config takes.

    What only the host of the runner can tell (a directory, a program) isn't looked for. How much it takes at once the
    runners say themselves.
    """

    concurrency: int | None = None

    def __init__(self, here: Executor) -> None:
        self._here = here
        self.name = here.name
        self.kind = here.kind
        self.idempotent = here.idempotent
        self.takes_prompts = here.takes_prompts

    def accepts(self, work: Work) -> None:
        """See `Executor.accepts`."""
        if work.workspace not in (None, "none"):
            raise Rejected("bad_request", detail="runners on other hosts make no workspaces", where="workspace")
        if work.cwd is not None and not work.cwd.startswith("/"):
            raise Rejected("bad_cwd", cwd=work.cwd, why="It is not an absolute path.")
        self._here.accepts(structs.replace(work, cwd=None))

    def exact(self, work: Work) -> Work:
        """See `Executor.exact`; the directory is the runner's to choose where the task names none."""
        return structs.replace(self._here.exact(work), cwd=work.cwd)

    async def probe(self) -> None:
        """See `Executor.probe`: whether it can be used is what the runners' heartbeats say."""

    async def run(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - it is never called with one.
        """See `Executor.run`: its commands go to runners."""
        raise Retryable("executor_down", executor=self.name, detail="it works on runners elsewhere")

    async def recover(self, command: Command, ports: Ports) -> Found:
        """See `Executor.recover`: an attempt from before the config gave the executor to runners."""
        return await self._here.recover(command, ports)

    async def adopt(self, command: Command, ports: Ports) -> Result:
        """See `Executor.adopt`; as `recover`."""
        return await self._here.adopt(command, ports)

    async def cancel(self, attempt_id: str) -> None:
        """See `Executor.cancel`; as `recover`."""
        await self._here.cancel(attempt_id)

    async def settled(self, attempt_id: str) -> None:
        """See `Executor.settled`; as `recover`."""
        await self._here.settled(attempt_id)

    async def aclose(self) -> None:
        """See `Executor.aclose`."""
        await self._here.aclose()
