"""The twelve tasks of the demo: shell scripts over a week of logs, each with one line in the ledger as its effect."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

LEDGER = "ledger"
DOOR = "door"
"""A file that the tasks which are to outlive the daemon wait for, in the middle of their work."""

TIMEOUT_S = 60.0
"""How long one attempt may take, so that nothing waits for a demo that was killed itself."""

DAYS, REQUESTS = 7, 400

_FETCH = """\
if [ ! -e fetch.tried ]; then
    touch fetch.tried
    echo 'mirror: connection refused' >&2
    exit 1
fi
cp logs/day-1 fetched.txt"""

_COMPRESS = f"""\
mkdir packed
for day in 1 2 3; do gzip -c logs/day-$day > packed/day-$day.gz; done
touch compress.begun
until [ -e {DOOR} ]; do sleep 0.1; done
for day in 4 5 6 7; do gzip -c logs/day-$day > packed/day-$day.gz; done"""

_REPORT_1 = f"""\
echo 'The week' > report.txt
touch report-1.begun
until [ -e {DOOR} ]; do sleep 0.1; done
wc -l logs/day-1 >> report.txt"""

_REPORT_2 = """\
[ "$(wc -l < report.txt)" -eq 2 ]
wc -l logs/day-2 >> report.txt"""


class Job(NamedTuple):
    """One task: its script, what it is for, and what its submit says beside the command."""

    name: str
    about: str
    script: str
    fields: Mapping[str, Any] = MappingProxyType({})
    held: bool = False
    """It is in the middle of its work when the daemon is killed."""
    by_tool: bool = False
    """It goes to the second omnid, as a call of its tool `task_submit`."""

    def submit(self, directory: str) -> dict[str, Any]:
        """Gives the parameters of its submit."""
        command = {"argv": ["sh", f"{self.name}.sh"], "cwd": directory, "timeout_s": TIMEOUT_S}
        if self.by_tool:
            return {"server": "second", "arguments": command, "ref": self.name, **self.fields}
        return {**command, "ref": self.name, **self.fields}


JOBS: tuple[Job, ...] = (
    Job("count", "count the requests", "cat logs/* | wc -l > count.txt"),
    Job("errors", "pick out the errors", "grep -h ' 500 ' logs/* > errors.txt"),
    Job("fetch", "fails once, is tried again", _FETCH, {"attempts_max": 3, "backoff_s": 2.0}),
    Job("compress", "compress each day", _COMPRESS, held=True),
    Job("archive", "pack what compress made: comes after it", "tar -cf week.tar packed", {"after": ["compress"]}),
    Job("report-1", "begin the report, in the lane `report`", _REPORT_1, {"lane": "report"}, held=True),
    Job("report-2", "go on with it: same lane, so not at once", _REPORT_2, {"lane": "report"}),
    Job("paths", "rank the pages", "cut -d ' ' -f 2 logs/* | sort | uniq -c | sort -rn > paths.txt"),
    Job("slowest", "find the slowest requests", "sort -n -k 4 logs/* | tail -n 5 > slowest.txt"),
    Job("sums", "checksums; a check looks at them", "cksum logs/* > sums.txt", {"check": ["test", "-s", "sums.txt"]}),
    Job("sizes", "measure the files, on a second omnid", "wc -c logs/* > sizes.txt", by_tool=True),
    Job("clients", "list the clients, on the second omnid", "cut -d ' ' -f 1 logs/* | sort -u > c.txt", by_tool=True),
)
"""In the order of their submission."""


def lay_out(directory: str) -> None:
    """Writes the logs and the scripts into an empty directory; raises OSError."""
    os.mkdir(os.path.join(directory, "logs"))
    for day in range(1, DAYS + 1):
        _write(os.path.join(directory, "logs", f"day-{day}"), "".join(_request(day, turn) for turn in range(REQUESTS)))
    for job in JOBS:
        # The ledger is opened with O_APPEND and gets each line in one write, so no two of them mix.
        text = f"set -eu\n{job.script}\necho {job.name} >> {LEDGER}\n"
        _write(os.path.join(directory, f"{job.name}.sh"), text)


def _request(day: int, turn: int) -> str:
    number = day * 7919 + turn * 104_729
    status = 500 if number % 97 == 0 else 200
    return f"10.0.0.{number % 23 + 1} /page-{number % 11} {status} {number % 1013}\n"


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
