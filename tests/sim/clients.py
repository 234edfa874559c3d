"""People and agents: they submit and give orders, lose answers, and ask again until they have one."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from msgspec import Struct, json, structs

from omnid.api.shapes import Control, GateControl, SubmitBatch
from omnid.clock import uuid7
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.flow.caller import Caller
from omnid.model import Submit
from tests.sim.world import EXECUTORS, LOOK

if TYPE_CHECKING:
    from tests.sim.daemon import Reply
    from tests.sim.run import Sim

ANSWER_S_MAX = 600.0
KEYS = 4
ACTIONS = ("cancel", "retry", "pause", "resume", "complete", "assign", "priority", "delete", "again", "done", "fail")
RESOLVE = ("done", "again", "fail")
REFUSED = frozenset(
    {
        "batch_task",
        "deadline_passed",
        "dependency_failed",
        "key_reused",
        "not_allowed",
        "not_approved",
        "not_in_state",
        "unknown_task",
        "bad_request",
        "other_origin",
    }
)
"""What a client that does nothing wrong in form may still be refused for."""


class Request(NamedTuple):
    """One request with the answer that it must have, however often it is sent."""

    caller: Caller
    method: str
    params: Struct


class Client:
    """One session, with its own chance, so that what it wants doesn't hang on what the daemon does."""

    def __init__(self, sim: "Sim", number: int) -> None:
        self._sim = sim
        self.chance = random.Random(f"{sim.seed}/client/{number}")
        self.number = number
        self.role = "agent" if number == 1 else "person"
        self.origin = f"client{number}" if number else "user"
        self._session = uuid7(0, self.chance.getrandbits(74))
        self._sent = 0
        self._submits = 0
        self._keyed: list[Submit] = []

    async def run(self, count: int) -> None:
        """Does a number of things, one after another."""
        for _ in range(count):
            await trio.sleep(self.chance.expovariate(1 / 4))
            await self._act()

    async def _act(self) -> None:
        kind = self.chance.random()
        known = list(self._sim.model.tasks)
        if kind < 0.5 or not known:
            await self.submit([self.draw(known)])
        elif kind < 0.6:
            await self.submit(self.draw_batch(known))
        elif kind < 0.9:
            await self.control(self.chance.choice(known), self.chance.choice(ACTIONS))
        elif self.role == "person":
            await self.gate(self.chance.choice(("*", *EXECUTORS)), close=self.chance.random() < 0.5)

    def draw(self, known: list[str], ref: str | None = None, refs: tuple[str, ...] = ()) -> Submit:
        """Draws a task."""
        chance = self.chance
        now_ms = self._sim.clock.wall_ms()
        self._submits += 1

        def maybe(odds: float, draw: Callable[[], Any]) -> Any:
            return draw() if chance.random() < odds else None

        after = refs or ((chance.choice(known),) if known and chance.random() < 0.2 else ())
        return Submit(
            argv=(LOOK if chance.random() < 0.15 else "make", str(self._submits)),
            executor=chance.choice(tuple(EXECUTORS)),
            priority=chance.choice((0, 0, 0, 5, -5, 10)),
            key=maybe(0.3, lambda: f"k{chance.randrange(KEYS)}"),
            ref=ref,
            after=after,
            lane=maybe(0.3, lambda: f"lane{chance.randrange(2)}"),
            not_before_ms=maybe(0.15, lambda: now_ms + chance.randrange(-5_000, 60_000)),
            deadline_ms=maybe(0.15, lambda: now_ms + chance.randrange(1, 90_000)),
            timeout_s=maybe(0.3, lambda: chance.uniform(1, 30)),
            attempts_max=maybe(0.3, lambda: chance.randrange(1, 4)),
            backoff_s=maybe(0.3, lambda: chance.uniform(0, 5)),
            labels=(f"{self.origin}.{self._submits}",),
        )

    def draw_batch(self, known: list[str]) -> list[Submit]:
        """Draws tasks of which some wait for earlier ones of the batch."""
        refs: list[str] = []
        # A plan that is sent again with more to do names what it had named before.
        batch = [self.chance.choice(self._keyed)] if self._keyed and self.chance.random() < 0.4 else []
        refs += [task.ref for task in batch if task.ref]
        for _ in range(self.chance.randrange(2, 5)):
            wanted = (self.chance.choice(refs),) if refs and self.chance.random() < 0.6 else ()
            ref = f"r{self._submits}"
            batch.append(self.draw(known, ref, wanted))
            refs.append(ref)
        self._keyed += [task for task in batch if task.key and not task.after]
        return batch

    async def submit(self, tasks: list[Submit]) -> None:
        """Submits until there is an answer, and holds the answer against the model."""
        # A client without a session has only the keys of its tasks to be safe with.
        keyed = all(task.key for task in tasks) and self.chance.random() < 0.5
        params: Struct = tasks[0] if len(tasks) == 1 else SubmitBatch(tasks=tasks)
        method = "task.submit" if len(tasks) == 1 else "task.submit_batch"
        fresh = [task for task in tasks if not self._sim.model.created[task.labels[0]]]
        answer = await self._ask(method, params, session=not keyed)
        if isinstance(answer, OmnidError):
            self._check_refusal(answer, fresh)
            return
        if answer is None:
            return
        for task, made in zip(tasks, [answer] if len(tasks) == 1 else answer.tasks, strict=True):
            asked = {"key": task.key} if task.key else {"labels": [*task.labels], "origin": self.origin}
            self._sim.model.submitted(made.id, asked)

    def _check_refusal(self, error: OmnidError, tasks: list[Submit]) -> None:
        """A refused submit left nothing, whatever was lost on the way."""
        model = self._sim.model
        for task in tasks:
            if model.created[task.labels[0]]:
                self._sim.fail(f"{task.labels[0]} was refused ({error.code}) and is taken")

    async def control(self, task_id: str, action: str) -> OmnidError | None:
        """Gives an order until there is an answer."""
        fields: dict[str, Any] = {}
        if action == "priority":
            fields["priority"] = self.chance.randrange(-10, 11)
        if action == "assign":
            fields["executor"] = self.chance.choice(tuple(EXECUTORS))
        if action in ("approve", "deny"):
            fields["always"] = self.chance.random() < 0.3
        self._sim.model.ordered(task_id, action)
        answer = await self._ask("task.control", Control(task=task_id, action=action, **fields))
        if isinstance(answer, Rejected):
            self._sim.model.refused(task_id, action)
            return answer
        return None

    async def gate(self, subject: str, *, close: bool) -> None:
        """Pauses or resumes an executor, or everything."""
        model = self._sim.model
        if not close:
            model.paused.discard(subject)
        answer = await self._ask("gate.pause" if close else "gate.resume", GateControl(executor=subject))
        if close and answer is not None and not isinstance(answer, OmnidError) and f"paused:{subject}" in model.gates:
            model.paused.add(subject)

    async def _ask(self, method: str, params: Struct, *, session: bool = True) -> Any:
        """Sends a request until it is answered; gives the answer or the refusal (None: it gave up)."""
        self._sent += 1
        number = str(self._sent)
        caller = Caller(self.role, self.origin)
        if session:
            caller = structs.replace(caller, session=self._session, request_id=number)
        sim = self._sim
        sim.trace(f"{self.origin} {number} {method} {json.encode(params).decode()}")
        with trio.move_on_after(ANSWER_S_MAX):
            while True:
                reply = await self._send(Request(caller, method, params))
                if reply is None or (reply.value is None and reply.error is None):
                    continue
                if isinstance(reply.error, Retryable):
                    await trio.sleep(self.chance.uniform(0.5, 2))
                    continue
                self._check(reply, caller, number)
                return reply.error or reply.value
        sim.fail(f"{self.origin} {number} {method} had no answer for {ANSWER_S_MAX} s")
        return None

    async def _send(self, request: Request) -> "Reply | None":
        """Sends once; gives None where the connection broke before the answer."""
        sim = self._sim
        daemon = await sim.daemon_up()
        reply = daemon.ask(*request)
        if self.chance.random() < sim.weather.answer_lost:
            await trio.sleep(self.chance.uniform(0, 1))
            return None
        await reply.done.wait()
        return reply

    def _check(self, reply: "Reply", caller: Caller, number: str) -> None:
        sim = self._sim
        error = reply.error
        sim.trace(f"{self.origin} {number} is answered {error.code if error else ''}")
        if error is None:
            return
        if error.code not in REFUSED:
            sim.fail(f"{self.origin} {number} was refused with {error.code}: {error}")
        if f"{caller.session}/{caller.request_id}" in sim.model.answers:
            sim.fail(f"{self.origin} {number} was done, and its repeat refused with {error.code}")
