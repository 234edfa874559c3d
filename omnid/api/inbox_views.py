"""What an agent reads of its inbox: the tasks, and one line that says which there are."""

from functools import partial

from omnid.api.shapes import Page, Search, TaskBrief
from omnid.api.views import Views
from omnid.errors import Rejected
from omnid.flow import inbox
from omnid.flow.answers import need_of
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.store import journal
from omnid.store.interface import Reader, Tx

CURSOR = "inbox-"
LINE_ROWS_MAX = 100
LINE_TASKS_MAX = 5

_SAID = {"completed": "ok", "failed": "failed", "cancelled": "cancelled"}


class InboxViews:
    """Shows inboxes, each to its own origin."""

    def __init__(self, context: Context, views: Views) -> None:
        self._context = context
        self._views = views

    async def page(self, caller: Caller, params: Search) -> Page:
        """Gives the next tasks, in the order in which they ended; a cursor acknowledges all up to it.

        A caller that only reads gets what comes behind its cursor, and acknowledges nothing. Raises
        Rejected(`bad_cursor`).
        """
        if params.cursor is None:
            return await self._context.store.read(partial(self._page, origin=caller.origin, limit=params.limit))
        number = params.cursor.removeprefix(CURSOR)
        if number == params.cursor or not number.isdecimal() or len(number) > 18:
            raise Rejected("bad_cursor", cursor=params.cursor[:50])
        if caller.read_only:
            rest = partial(self._page, origin=caller.origin, limit=params.limit, after=int(number))
            return await self._context.store.read(rest)

        def write(tx: Tx) -> Page:
            inbox.acknowledge(tx, caller.origin, int(number))
            return self._page(tx, caller.origin, params.limit)

        return await self._context.store.write(write)

    async def last(self, origin: str) -> int | None:
        """Gives the `ord` of the newest that an origin hasn't acknowledged; None where there is nothing."""
        return await self._context.store.read(partial(inbox.last, origin=origin))

    async def line(self, origin: str) -> str | None:
        """Says which tasks an origin hasn't acknowledged; None where there are none."""

        def find(reader: Reader) -> tuple[list[tuple[TaskBrief, str]], bool]:
            found, _, more = self._unread(reader, origin, LINE_ROWS_MAX)
            return found, more

        found, more = await self._context.store.read(find)
        if not found:
            return None
        names = [f"{_short(brief)} {_SAID.get(event, 'needs you')}" for brief, event in found[:LINE_TASKS_MAX]]
        rest = len(found) - len(names)
        listed = ", ".join(names) + (f" and {rest}{'+' if more else ''} more" if rest else "")
        count = "1 task" if len(found) == 1 else f"{len(found)}{'+' if more else ''} tasks"
        return f"{count} in your inbox: {listed}. task_search(inbox=true) has what ended while you were away."

    def _page(self, reader: Reader, origin: str, limit: int, after: int = 0) -> Page:
        found, last, _ = self._unread(reader, origin, limit, after)
        return Page([brief for brief, _ in found], None if last is None else f"{CURSOR}{last}")

    def _unread(
        self, reader: Reader, origin: str, limit: int, after: int = 0
    ) -> tuple[list[tuple[TaskBrief, str]], int | None, bool]:
        """Gives tasks with what was noted of them, each once, the last row looked at, and whether there may be more."""
        rows = inbox.unread(reader, origin, limit, after)
        found: dict[str, tuple[TaskBrief, str]] = {}
        for row in rows:
            task = None if row.subject is None else journal.task_by_id(reader, row.subject)
            event = str(row.body["event"])
            if task is not None and inbox.still_holds(event, task.state, need_of(task)):
                found.pop(task.id, None)
                found[task.id] = self._views.brief_of(reader, task.id), event
        return list(found.values()), rows[-1].ord if rows else None, len(rows) == limit


def _short(brief: TaskBrief) -> str:
    return brief.name.rpartition("/")[2]
