"""Shared reasons why tasks can't start: one row per cause, opened by time, by a probe, or by a person."""

from collections.abc import Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup

from omnid.errors import OmnidError, Retryable
from omnid.flow import limits, outages
from omnid.flow.context import Context
from omnid.model import Gate, Problem
from omnid.retry import Backoff, FailureCount
from omnid.store import journal
from omnid.store.interface import Reader, Tx

PROBE_BACKOFF = Backoff(base_s=2.0, max_s=300.0)
PROBE_S_MAX = 60.0


class Gates:
    """The closed gates, kept in memory as the journal has them; only these methods change either."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closed: dict[str, Gate] = {}
        self._probing: set[str] = set()
        self._counts: dict[str, FailureCount] = {}
        """Failures of each executor; a probe that succeeds doesn't end the count, so that flapping slows down."""

    async def load(self) -> None:
        """Reads the gates that were closed when the daemon ended."""
        self._closed = {gate.id: gate for gate in await self._context.store.read(_all)}

    def all(self) -> list[Gate]:
        """Gives the closed gates, the oldest first."""
        return sorted(self._closed.values(), key=lambda gate: (gate.closed_at_ms, gate.id))

    def closed(self) -> frozenset[str]:
        """Gives the executors on which nothing starts, `*` being all of them; a limit that is due lets one task try."""
        now_ms = self._context.clock.wall_ms()
        return frozenset(gate.subject for gate in self._closed.values() if not limits.is_due(gate, now_ms))

    def of(self, executor: str) -> Gate | None:
        """Gives the gate that keeps this executor's tasks from their start: a pause first, or None."""
        found = [gate for gate in self._closed.values() if gate.subject in ("*", executor)]
        return min(found, key=lambda gate: (gate.cause != "paused", gate.id)) if found else None

    async def pause(self, subject: str) -> None:
        """Closes the gate `paused` for an executor or, with `*`, for all; it stays until `resume`."""
        await self._close(Gate(f"paused:{subject}", "paused", subject, self._context.clock.wall_ms(), None))

    async def resume(self, subject: str) -> bool:
        """Opens the gate `paused`, and an executor's limits: a person knows better; tells whether one was closed."""
        was_paused = await self._open(f"paused:{subject}")
        lifted = partial(limits.open_limits, executor=subject, config=self._context.config)
        opened = await self._context.store.write(lifted, then=self._opened)
        return was_paused or bool(opened)

    def take(self, changed: limits.Changed) -> None:
        """Takes over what a result has done to gates, once that is committed."""
        gate = changed.closed
        if gate is not None:
            if gate.id not in self._closed:
                self._context.log.info("limit", executor=gate.subject, cause=gate.cause, wake_at_ms=gate.wake_at_ms)
            self._closed = {**self._closed, gate.id: gate}
            self._context.timer.ring()
        if changed.opened:
            self._opened(changed.opened)
            self._context.log.info("limit_over", gates=changed.opened)

    async def executor_down(self, executor: str, error: Retryable) -> None:
        """Closes an executor's gate with the reason, until a probe succeeds; logs the first failure only."""
        context = self._context
        now_ms = context.clock.wall_ms()
        known = self._closed.get(f"executor:{executor}")
        count = self._counts.get(executor, FailureCount()).failed(context.clock.monotonic_s())
        self._counts[executor] = count
        failures = count.failures
        wake_at_ms = now_ms + round(PROBE_BACKOFF.delay_s(failures, context.clock.uniform) * 1000)
        since_ms = known.closed_at_ms if known else now_ms
        if known is None:
            context.log.warning("executor_down", executor=executor, **error.as_dict())
        problem = Problem.of(error)
        await self._close(Gate(f"executor:{executor}", "executor", executor, since_ms, wake_at_ms, problem, failures))

    def executor_worked(self, executor: str) -> None:
        """Forgets an executor's failures: it has brought an attempt to its end."""
        self._counts.pop(executor, None)

    def probe_due(self, group: TaskGroup) -> None:
        """Probes the executors whose gates are due, side by side in the group; opens those that are well again."""
        now_ms = self._context.clock.wall_ms()
        # A time that no backoff reaches is left from before the clock was set back.
        latest_ms = now_ms + round(PROBE_BACKOFF.max_s * 1000)
        if any(limits.is_due(gate, now_ms) for gate in self._closed.values()):
            self._context.dispatch.ring()
        for gate in self._closed.values():
            if gate.cause != "executor" or gate.wake_at_ms is None or now_ms < gate.wake_at_ms <= latest_ms:
                continue
            if gate.subject not in self._probing:
                self._probing.add(gate.subject)
                group.start_soon(self._probe, gate.subject)

    def next_wake_at_ms(self) -> int | None:
        """Gives when the next gate is due, or None; one that is being probed, or waits for a task to try, is not."""
        now_ms = self._context.clock.wall_ms()
        times = (
            gate.wake_at_ms
            for gate in self._closed.values()
            if gate.wake_at_ms is not None and not limits.is_due(gate, now_ms)
            if gate.cause != "executor" or gate.subject not in self._probing
        )
        return min(times, default=None)

    async def _probe(self, name: str) -> None:
        """Probes until what it found is written; a store that can't take it is tried again after a wait."""
        context = self._context
        failures = 0
        try:
            while True:
                try:
                    return await self._probe_once(name)
                except Retryable as error:
                    failures += 1
                    if failures == 1:
                        context.log.warning("probe_waits", executor=name, **error.as_dict())
                await anyio.sleep(PROBE_BACKOFF.delay_s(failures, context.clock.uniform))
        finally:
            self._probing.discard(name)
            context.timer.ring()

    async def _probe_once(self, name: str) -> None:
        executor = self._context.executors.get(name)
        if executor is None:
            await self._open(f"executor:{name}")
            return
        try:
            with anyio.fail_after(PROBE_S_MAX):
                await executor.probe()
        except TimeoutError:
            detail = f"its probe gave no answer within {PROBE_S_MAX:.0f} s"
            await self.executor_down(name, Retryable("executor_down", executor=name, detail=detail))
        except Retryable as error:
            await self.executor_down(name, error)
        except OmnidError as error:
            await self.executor_down(name, Retryable("executor_down", executor=name, detail=error.what))
        else:
            gate = self._closed.get(f"executor:{name}")
            await self._open(f"executor:{name}")
            if gate is not None:
                down_s = (self._context.clock.wall_ms() - gate.closed_at_ms) / 1000
                self._context.log.info("executor_up", executor=name, down_s=round(down_s, 1))

    async def _close(self, gate: Gate) -> None:
        def closed(_: None) -> None:
            self._closed = {**self._closed, gate.id: gate}  # A copy, because readers look at it from their threads.
            self._context.timer.ring()

        close = partial(_close_gate, gate=gate, outage_id=self._context.clock.uuid())
        await self._context.store.write(close, then=closed)

    async def _open(self, id: str) -> bool:
        return await self._context.store.write(partial(_open_gate, id=id), then=lambda _: self._opened((id,)))

    def _opened(self, ids: Sequence[str]) -> None:
        self._closed = {key: gate for key, gate in self._closed.items() if key not in ids}
        self._context.dispatch.ring()


def _close_gate(tx: Tx, *, gate: Gate, outage_id: str) -> None:
    journal.close_gate(tx, gate)
    outages.began(tx, gate, outage_id)


def _open_gate(tx: Tx, *, id: str) -> bool:
    was_closed = journal.open_gate(tx, id)
    cause, _, subject = id.partition(":")
    if was_closed:
        outages.over(tx, cause, subject)
    return was_closed


def _all(reader: Reader) -> list[Gate]:
    return [journal.gate_of(row) for row in reader.all("gates")]
