"""A daemon to be killed: runs one attempt, or holds one server, until somebody ends it.

``holder.py SPOOL_PARENT attempt ID ARGV...`` or ``holder.py SPOOL_PARENT server NAME ARGV...``
"""

import os
import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from omnid.clock import SystemClock
from omnid.executor.supervised import Supervised
from omnid.model import Work
from tests.contract.executors import KILL_GRACE_S, LIMITS, Ports, command_of, commands


async def main(parent: Path, what: str, name: str, argv: tuple[str, ...]) -> None:
    if what == "attempt":
        await commands(parent).run(command_of(Work(argv=argv), attempt=name), Ports())
        return
    supervised = Supervised(parent / "spool", SystemClock(), LIMITS, KILL_GRACE_S)
    server = await supervised.start_server(name, argv, "/", dict(os.environ))
    while True:
        os.write(1, await server.receive())


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], tuple(sys.argv[4:]))
