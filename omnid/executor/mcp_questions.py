"""What an MCP server asks during an attempt, on its way to a person and back (elicitation, SEP-1036 and SEP-2322)."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, cast

import msgspec

from omnid.errors import Rejected
from omnid.executor.allowance import Allowance
from omnid.executor.interface import Ports
from omnid.log import Logger
from omnid.model import InputRequest

ELICIT = "elicitation/create"
GIVEN = "input_given"
"""The kind of notes that say which answers a call has got: asked the same again, it means something new."""

Requests = Mapping[str, Mapping[str, Any]]
Answers = dict[str, dict[str, Any]]


class UnanswerableError(Exception):
    """The server asks for something else than a person's answer; the text says for what."""


class Questions:
    """The questions of one attempt. While somebody is asked, the attempt's clock stands."""

    def __init__(self, attempt_id: str, ports: Ports, allowance: Allowance, log: Logger) -> None:
        self._attempt_id = attempt_id
        self._ports = ports
        self._allowance = allowance
        self._log = log
        self._held_back = 0

    async def of_task(self, requests: Requests) -> Answers:
        """Has the questions of a task answered, whose keys name one question each.

        Raises UnanswerableError, and Retryable where they can't be written down now.
        """
        answers = await self._ask({_of_task(key): request for key, request in requests.items()})
        return {key: answers[_of_task(key)] for key in requests}

    async def of_call(self, requests: Requests) -> Answers:
        """Has the questions of a call answered, which are known by what they say; raises as `of_task` does.

        The same question, asked again when it was answered, is a new one: no answer is given twice.
        """
        given = await self._ports.notes(self._attempt_id, GIVEN)
        marks = {
            key: sha256(msgspec.json.encode(request, order="sorted")).hexdigest()[:16]
            for key, request in requests.items()
        }
        names = {key: f"{key}:{mark}:{given.count(mark)}" for key, mark in marks.items()}
        answers = await self._ask({names[key]: request for key, request in requests.items()})
        for mark in marks.values():
            await self._ports.note(self._attempt_id, GIVEN, mark)
        return {key: answers[name] for key, name in names.items()}

    @contextmanager
    def may_ask(self) -> Generator[None]:
        """Says of the attempt, while the context lasts, that a question may be its own that is held back."""
        self._held_back += 1
        self._ports.may_ask(self._attempt_id, may=True)
        try:
            yield
        finally:
            self._held_back -= 1
            self._ports.may_ask(self._attempt_id, may=self._held_back > 0)

    async def withdraw(self, keys: Collection[str]) -> None:
        """Closes questions of a task that it no longer asks."""
        await self._ports.withdraw(self._attempt_id, [_of_task(key) for key in keys])

    async def _ask(self, requests: Requests) -> Answers:
        asked: dict[str, InputRequest] = {}
        for name, request in requests.items():
            method, params = request.get("method"), request.get("params")
            if method != ELICIT:
                raise UnanswerableError(str(method)[:100])
            asked[name] = InputRequest(ELICIT, cast("dict[str, Any]", params) if isinstance(params, dict) else {})
        try:
            with self._allowance.held():
                answers = await self._ports.ask(self._attempt_id, asked)
        except Rejected as error:
            # Too much is asked, so that nobody decides.
            self._log.warning("mcp_not_asked", attempt=self._attempt_id, **error.as_dict())
            return {name: {"action": "cancel"} for name in requests}
        return {name: msgspec.to_builtins(answers[name]) for name in requests}


def _of_task(key: str) -> str:
    return f"task:{key}"
