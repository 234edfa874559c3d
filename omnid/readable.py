"""Calls back whenever a file can be read.

To wait for the file anew each time, as anyio has it, costs two changes of the loop's selector, a future and a turn of
the loop: for the two files that a lone submit comes by, a fifth of what it costs. asyncio can watch a file for good.
"""

import asyncio  # noqa: TID251 - anyio has no way to watch a file for good.
from collections.abc import Callable

import anyio


async def on_readable(file: int, look: Callable[[], None]) -> None:
    """Calls `look` each time the file can be read, and as long as it can be, until this is cancelled.

    It is called on the event loop and must take up what is there without blocking. What it raises is raised here, and
    ends it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # Another backend: it waits each time.
        await _each_time(file, look)
        return
    broken = loop.create_future()

    def call() -> None:
        try:
            look()
        except Exception as error:  # noqa: BLE001 - it is raised by the task that waits.
            loop.remove_reader(file)
            broken.set_exception(error)

    loop.add_reader(file, call)
    try:
        await broken
    finally:
        loop.remove_reader(file)


async def _each_time(file: int, look: Callable[[], None]) -> None:
    while True:
        await anyio.wait_readable(file)
        look()
