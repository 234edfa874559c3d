"""Questions of a server that don't say in which call they are asked, while several calls are open.

Before 2026-07-28 a server's request over standard streams names no call. A guess could show one task's question to
whoever has another, and give the answer to the wrong call. So it is found out which call asks: one that is answered
meanwhile doesn't, as a call that asks waits.
"""

from collections.abc import Iterable

import anyio


class Nameless:
    """The questions of one session of which it isn't known yet whose they are, oldest first."""

    def __init__(self) -> None:
        self._open: list[_Question] = []
        self._changed = anyio.Event()

    async def whose(self, calls: Iterable[str]) -> str | None:
        """Waits until one of the open calls is left that can have asked; None: it can't be found out.

        It ends with the calls, which have deadlines. Of as many questions as calls the newest is given up, so that its
        call ends and the others get on.
        """
        question = _Question(calls)
        self._open.append(question)
        try:
            while len(question.calls) > 1 and not question.lost:
                if question is self._open[-1] and len(self._open) >= len(question.calls):
                    return None
                await self._changed.wait()
        finally:
            self._open.remove(question)
            self._ring()
        return None if question.lost else next(iter(question.calls), None)

    def answered(self, call: str) -> None:
        """Hears that the server has answered a call, which so asks nothing."""
        for question in self._open:
            question.calls.discard(call)
        self._ring()

    def left(self, call: str) -> None:
        """Hears that a call has ended; one without an answer may be the one that asks, and isn't there any more."""
        for question in self._open:
            question.lost |= call in question.calls
        self._ring()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class _Question:
    """A question, and the calls that were open when it came and can have asked it."""

    def __init__(self, calls: Iterable[str]) -> None:
        self.calls = set(calls)
        self.lost = False
