"""Looks up the names of hosts in threads that nobody waits for.

A resolver that answers nothing holds `getaddrinfo` for as long as the system's config has it, and nothing can call it
off: whoever waits has a deadline, and the thread goes on. In asyncio's own pool there are few threads, so that such
names would hold up all others; and a process doesn't end before each of them has.
"""

import asyncio  # noqa: TID251 - It is asyncio's pool that is replaced; trio's threads are let go as they should be.
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LOOKUPS_MAX = 64


class Lookups(ThreadPoolExecutor):
    """Runs each lookup in a thread of its own; what is beyond `LOOKUPS_MAX` at once fails as an unknown name does."""

    def __init__(self) -> None:
        super().__init__(1)
        self._room = threading.BoundedSemaphore(LOOKUPS_MAX)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See ThreadPoolExecutor."""
        future: Future[T] = Future()
        if not self._room.acquire(blocking=False):
            future.set_exception(socket.gaierror(socket.EAI_AGAIN, f"{LOOKUPS_MAX} names are being looked up"))
            return future
        look = (future, lambda: fn(*args, **kwargs))
        try:
            threading.Thread(target=self._look, args=look, name="lookup", daemon=True).start()
        except RuntimeError as error:  # The system has no thread left.
            self._room.release()
            future.set_exception(socket.gaierror(socket.EAI_AGAIN, str(error)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - As it is there.
        """See ThreadPoolExecutor: those whose lookups go on have given them up."""

    def _look(self, future: "Future[T]", look: Callable[[], T]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(look())
        except BaseException as error:  # noqa: BLE001 - It is raised where the lookup is waited for.
            future.set_exception(error)
        finally:
            self._room.release()


def new_loop() -> asyncio.AbstractEventLoop:
    """Gives a loop of asyncio that looks names up so."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(Lookups())
    return loop
