"""The real supervisor, which is killed at a chosen moment: ``dying_supervisor.py MOMENT DIR LOCK LIFE CONTROL``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from omnid.worker import supervisor


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(moment: str, arguments: list[str]) -> None:
    write_record, open_gate = supervisor.write_record, supervisor.Child.open_gate
    when, _, name = moment.partition(" ")

    def writing(record: str, content: dict[str, Any]) -> None:
        if (when, name) == ("before", record):
            die()
        write_record(record, content)
        if (when, name) == ("after", record):
            die()

    def opening(child: supervisor.Child) -> None:
        open_gate(child)
        if name == "gate":
            die()

    supervisor.write_record = writing
    supervisor.Child.open_gate = opening
    supervisor.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
