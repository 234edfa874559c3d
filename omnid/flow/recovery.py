"""What happens first at a start: every attempt that was open is adopted, run, or settled. Nothing new starts before."""

from functools import partial

from anyio.abc import TaskGroup

from omnid.errors import OmnidError
from omnid.flow.commands import recall
from omnid.flow.context import Context
from omnid.flow.dispatcher import Earlier, command_of, earlier
from omnid.flow.runner import Runner, Settles, lost
from omnid.model import Attempt, Command, Task
from omnid.store import journal
from omnid.store.interface import Reader

PAGE_MAX = 500


class Recovery:
    """Settles what an earlier daemon left open, and cleans up what the journal no longer knows."""

    def __init__(self, context: Context, runner: Runner, results: Settles) -> None:
        self._context = context
        self._runner = runner
        self._results = results

    async def run(self, group: TaskGroup) -> int:
        """Hands each open attempt to the runner, which adopts it or settles it; gives how many there were."""
        context = self._context
        count = 0
        after = 0
        while page := await context.store.read(partial(_open_attempts, after=after)):
            for ord, task, attempt, before in page:
                after = ord
                count += 1
                await self._one(group, task, attempt, before)
        return count

    async def _one(self, group: TaskGroup, task: Task, attempt: Attempt, before: Earlier) -> None:
        context = self._context
        runner = (attempt.route or {}).get("runner")
        if runner is not None:
            await self._elsewhere(task, attempt, runner)
            return
        command = command_of(
            task,
            attempt.id,
            context.config,
            idempotent=attempt.idempotent,
            recover=True,
            before=before,
            reserved_usd=attempt.reserved_usd,
        )
        name = executor_for(context, command)
        if name is None:
            context.log.warning("executor_gone", executor=attempt.executor, task=task.name)
            group.start_soon(self._settle_lost, command)
            return
        context.take_on(attempt.id, attempt.executor)
        if task.cancel:
            context.ask_cancel(attempt.id)
        self._runner.begin(group, command, name)

    async def _elsewhere(self, task: Task, attempt: Attempt, runner: str) -> None:
        """Counts an attempt that a runner has, or is about to get out of its outbox; its result comes from there."""
        context = self._context
        context.fleet.took(attempt.id, runner, attempt.executor)
        if task.cancel:
            await context.store.write(lambda tx: recall(tx, runner, attempt.id))

    async def _settle_lost(self, command: Command) -> None:
        await self._results.settle(lost(command))

    async def tidy(self) -> None:
        """Lets go of the control files of ended attempts, and sets aside attempts that the journal doesn't know.

        It goes through the whole spool, so it runs in the background.
        """
        context = self._context
        for attempt_id in await context.spool.attempts():
            row = await context.store.read(partial(_head, attempt_id=attempt_id))
            try:
                if row is None:
                    context.log.warning("unknown_attempt_set_aside", attempt=attempt_id)
                    await context.set_aside(attempt_id)
                elif row[4] is not None:
                    await context.spool.forget_control_files(attempt_id)
            except (OSError, OmnidError) as error:
                context.log.warning("spool_not_tidied", attempt=attempt_id, detail=str(error))


def executor_for(context: Context, command: Command) -> str | None:
    """Gives the executor that can look after an attempt: its own, else for a command the built-in one.

    An adopted command follows the spec in its spool, so an executor that left the config changes nothing for it; what
    never ran is taken back.
    """
    if command.executor in context.executors:
        return command.executor
    is_command = command.work.tool is None and command.work.server is None
    return "command" if is_command and "command" in context.executors else None


def _open_attempts(reader: Reader, *, after: int) -> list[tuple[int, Task, Attempt, Earlier]]:
    found: list[tuple[int, Task, Attempt, Earlier]] = []
    for row in reader.all("open_attempts", after, PAGE_MAX):
        attempt = journal.attempt_of(row)
        task = journal.need_task(reader, attempt.task_id)
        found.append((row[0], task, attempt, earlier(reader, task, attempt.number)))
    return found


def _head(reader: Reader, *, attempt_id: str) -> tuple[object, ...] | None:
    row = reader.one("attempt_head", attempt_id)
    return None if row is None else tuple(row)
