"""The time that an attempt has for its work: it stands while the attempt waits for a person."""

from collections.abc import Generator
from contextlib import contextmanager

import anyio


class Allowance:
    """A cancel scope whose deadline can be held; `scope` is entered once, by whoever does the work."""

    def __init__(self, allowed_s: float) -> None:
        self.scope = anyio.CancelScope(deadline=anyio.current_time() + allowed_s)
        self._holds = 0
        self._left_s = 0.0

    @contextmanager
    def held(self) -> Generator[None]:
        """Stops the clock for as long as the context lasts, and as others do that hold it too."""
        if self._holds == 0:
            self._left_s = self.scope.deadline - anyio.current_time()
            self.scope.deadline = float("inf")
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0:
                self.scope.deadline = anyio.current_time() + self._left_s
