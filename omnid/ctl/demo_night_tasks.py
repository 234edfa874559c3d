"""The nine tasks of the night demo, what the scripted agent does with each, and the small project that they work on."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omnid.ctl.demo_agent import DOOR, LIMIT, SCRIPT

RUN_USD = 0.20
"""What each run costs, and at most may cost."""
CAP_USD = 1.40
"""Room for seven runs: the three of the limit, the three of the power cut, and the one that is lost in it."""
RAISED_USD = 2.50

TIMEOUT_S = 60.0
"""How long one attempt may take, so that nothing waits for a demo that was killed itself."""

PROJECT: Mapping[str, str] = {
    "README.md": "# shop\n",
    "login.py": "def login(user, password):\n    return user.password == password\n",
    "parser.py": "def parse(line):\n    return line.split(',')\n",
}


class Job(NamedTuple):
    """One task: its prompt, and what the agent does with it."""

    name: str
    prompt: str
    file: str
    text: str
    limit_s: float = 0.0
    """The agent hits a limit that lasts so long."""
    waits_for: Sequence[str] = ()
    """Files that the agent waits for in the middle of its work."""
    needs: Sequence[str] = ()
    """Tasks that come before it."""

    def submit(self, directory: str) -> dict[str, Any]:
        """Gives the parameters of its submit."""
        return {
            "argv": ["claude", "-p", self.prompt],
            "cwd": directory,
            "timeout_s": TIMEOUT_S,
            "ref": self.name,
            "only": "22:00-06:00",
            "backoff_s": 0.5,
            **({"after": list(self.needs)} if self.needs else {}),
        }

    def step(self) -> dict[str, Any]:
        """Gives what the agent's script says about it."""
        step = {"name": self.name, "file": self.file, "text": self.text, "cost_usd": RUN_USD, "work_s": 0.1}
        return {**step, "waits_for": list(self.waits_for), "limit_s": self.limit_s}


KILLED, ASKED = "settings", "deploy"
"""The task whose agent is killed, and the one that an agent has submitted."""

JOBS: tuple[Job, ...] = (
    Job(
        "login",
        "fix the login bug",
        "login.py",
        "import hmac\n\n\ndef login(user, password):\n    return hmac.compare_digest(user.password, password)\n",
        waits_for=(LIMIT,),
    ),
    Job(
        "tests",
        "write tests for the parser",
        "test_parser.py",
        "def test_parse():\n    pass\n",
        limit_s=2.0,
        waits_for=("login.begun", "readme.begun"),
    ),
    Job("readme", "write the README", "README.md", "# shop\n\nA shop.\n", waits_for=(LIMIT,)),
    Job("settings", "move the settings into a file", "settings.toml", "[shop]\nopen = true\n", waits_for=(DOOR,)),
    Job(
        "types",
        "add type hints",
        "parser.py",
        "def parse(line: str) -> list[str]:\n    return line.split(',')\n",
        waits_for=(DOOR,),
    ),
    Job("search", "make the search faster", "search.py", "INDEX = {}\n", waits_for=(DOOR,)),
    Job("review", "review what became of the settings", "REVIEW.md", "Looks good.\n", needs=("settings", "search")),
    Job("changes", "write the changelog", "CHANGELOG.md", "- Types\n", needs=("types",)),
    Job("deploy", "write a script for the deploy", "deploy.sh", "exit 0\n"),
)
"""In the order of their submission."""


def lay_out(agents: str, project: str) -> None:
    """Writes the agent's script and the project into empty directories; raises OSError."""
    with open(os.path.join(agents, SCRIPT), "w", encoding="utf-8") as file:
        json.dump({job.prompt: job.step() for job in JOBS}, file)
    for name, text in PROJECT.items():
        with open(os.path.join(project, name), "w", encoding="utf-8") as file:
            file.write(text)
