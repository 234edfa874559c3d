"""What every executor offers, whatever it calls: a command, an MCP server, later a model."""

from collections.abc import Awaitable, Collection, Mapping
from enum import Enum
from typing import Any, Protocol

from omnid.model import Command, InputRequest, InputResponse, Result, Work

CHANGES = "changes"
"""The kind of note that says what an attempt has changed in its workspace: ``git diff --stat``."""


class Ports(Protocol):
    """What an executor may use of the daemon while it works on one attempt."""

    def note(self, attempt_id: str, kind: str, body: Any) -> Awaitable[None]:
        """Writes a JSON body durably beside the attempt; it is synced to the disk on return.

        The kind `idempotent` (body: bool) replaces what the journal holds for the attempt's promise 3.
        """
        ...

    def notes(self, attempt_id: str, kind: str) -> Awaitable[list[Any]]:
        """Gives the bodies that were noted for the attempt under that kind, oldest first."""
        ...

    def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> Awaitable[dict[str, InputResponse]]:
        """Asks a person, and waits until all is answered; meanwhile the task is `input_required`.

        The requests are on the disk before it waits. Their names are the executor's, and name one request of the
        attempt each: asked again, also by a later daemon, it stands as it was, and an answer that was given is given.
        What nobody answers in `task.answer_timeout_s` is answered with `cancel`. Cancelling the wait leaves the
        requests open; see `withdraw`. Raises Rejected(`too_many`) beyond `limits.asks_max` requests of one attempt
        or `limits.ask_bytes_max` of one request, and Rejected(`not_in_state`) where the attempt is over.

        The attempt's own clock stands while it waits: an executor holds its deadline in an `Allowance`.
        """
        ...

    def may_ask(self, attempt_id: str, *, may: bool) -> None:
        """Says that a question may be the attempt's and is held back until that is known, or that it no longer is.

        It is for whoever wonders why the attempt takes so long, and is not written down.
        """
        ...

    def withdraw(self, attempt_id: str, names: Collection[str]) -> Awaitable[None]:
        """Closes requests that whoever asked no longer wants to be answered; unknown and answered ones are ignored."""
        ...


class Found(Enum):
    """What is left of an attempt that was open when the daemon started."""

    NEVER_RAN = "never_ran"
    """It surely had no effect: the same attempt runs now."""
    RUNNING = "running"
    """It runs, or it has ended and its result lies ready: `adopt` waits for the result."""
    LOST = "lost"
    """It had begun and is gone: idempotent work runs again, any other becomes uncertain."""


class Executor(Protocol):
    """A way to get work done. `run`, `adopt` and `recover` never raise for what the work does: they give a Result.

    `Retryable` out of `run` means that the executor itself is down: nothing was begun, the attempt is taken back
    and the executor's gate closes. Cancelling the scope around `run` must leave nothing behind but what is supervised.
    """

    name: str
    kind: str
    """`command`, `mcp`, `model`, or a kind of one's own in tests and benchmarks."""
    concurrency: int | None
    """How many attempts it takes at once; None: as many as the daemon has slots."""
    idempotent: bool
    """Whether its work may be repeated after a crash (promise 3), unless a note says otherwise."""
    takes_prompts: bool
    """Whether a task may be a prompt for it."""

    def accepts(self, work: Work) -> None:
        """Looks at the work when it is submitted; raises Rejected where it can never run here."""
        ...

    def exact(self, work: Work) -> Work:
        """Gives the work with all that the executor's config adds to it: what a person approves is what runs."""
        ...

    async def probe(self) -> None:
        """Raises Retryable(`executor_down`, `secret_missing`) while it can't be used; bounded in time."""
        ...

    async def run(self, command: Command, ports: Ports) -> Result:
        """Does the work and gives its result; returns once, within the command's timeout and a grace."""
        ...

    async def recover(self, command: Command, ports: Ports) -> Found:
        """Says what is left of an attempt of an earlier daemon, and ends remains of what is lost."""
        ...

    async def adopt(self, command: Command, ports: Ports) -> Result:
        """Waits for the result of an attempt that `recover` found running."""
        ...

    async def cancel(self, attempt_id: str) -> None:
        """Asks the attempt to end; `run` or `adopt` then gives its result. Unknown attempts are ignored."""
        ...

    async def settled(self, attempt_id: str) -> None:
        """Hears that the attempt's result is in the journal: what was kept for a recovery may go."""
        ...

    async def aclose(self) -> None:
        """Lets go of what the executor keeps open; supervised commands go on."""
        ...
