"""The log of an attempt that works inside the daemon: texts are taken at once and written behind."""

from functools import partial

import anyio

from omnid.executor.spool import Spool
from omnid.log import Logger

TEXTS_MAX = 1000
"""How many texts of one attempt may wait to be written to its log; what comes on top is counted."""
FLUSH_S = 5.0


class AttemptLog:
    """What is said while an attempt works, on its way to its log; a slow disk slows nobody who says it."""

    def __init__(self, spool: Spool, attempt_id: str, log: Logger) -> None:
        self._append = partial(spool.append_log, attempt_id)
        self._attempt_id = attempt_id
        self._log = log
        self._send, self._receive = anyio.create_memory_object_stream[str](TEXTS_MAX)
        self._dropped = 0
        self._written = anyio.Event()

    def add(self, text: str) -> None:
        """Takes a text to be written soon."""
        try:
            self._send.send_nowait(text)
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._dropped += 1

    def close(self) -> None:
        """Ends `write` once all is written."""
        self._send.close()

    async def flush(self) -> None:
        """Waits until all is written; a disk that takes longer than `FLUSH_S` keeps no attempt from ending."""
        with anyio.move_on_after(FLUSH_S):
            await self._written.wait()

    async def write(self) -> None:
        """Writes what comes until `close`."""
        try:
            with self._receive:
                async for text in self._receive:
                    texts = [text]
                    while self._receive.statistics().current_buffer_used:
                        texts.append(self._receive.receive_nowait())
                    await self._append("".join(texts))
            if self._dropped:
                await self._append(f"[{self._dropped} texts are left out here]\n")
        except OSError as error:
            # The log is a help, not the result; the daemon's own log tells that it is missing.
            self._log.warning("attempt_log_lost", attempt=self._attempt_id, error=str(error))
        finally:
            self._written.set()
