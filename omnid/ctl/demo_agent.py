"""A scripted agent that stands in for Claude Code, in the night demo and in tests, and says so.

It takes the flags of ``claude -p`` that omnid uses, keeps its sessions in files, and does what a script says for each
prompt: wait, hit a usage limit, write a file, cost something. What it is given and what it does it writes into ledgers,
which are counted. A prompt that the script doesn't know is done at once. Run by its path, with ``PLACE ARGUMENTS...``.
"""

import json
import os
import sys
import time
from typing import Any, NoReturn

SCRIPT = "script.json"
"""Prompt -> what the session does with it: `name`, `work_s`, `waits_for` (files of the place), `limit_s` (it hits a
limit that lasts so long), `file` and `text` (what it writes; "" writes nothing), `cost_usd`."""
PROMPTS, EFFECTS, COSTS = "prompts", "effects", "costs"
"""The ledgers: the name of each session at its first prompt and when its work is done, and what each run has cost."""
LIMIT, DOOR, SESSIONS = "limit", "door", "sessions"
CONTINUE = "continue"
COST_USD = 0.05
WAIT_S_MAX = 60.0

_LOOK_S = 0.05
_TAKES_VALUE = frozenset(
    {
        *("--session-id", "--resume", "--output-format", "--permission-mode", "--allowedTools", "--allowed-tools"),
        *("--max-budget-usd", "--model"),
    }
)


class Agent:
    """One run: a place with the script and the ledgers, and what the command line says."""

    def __init__(self, place: str, arguments: list[str]) -> None:
        self._place = place
        self._options: dict[str, str] = {}
        words: list[str] = []
        rest = iter(arguments)
        for word in rest:
            if word == "--":
                words += rest
            elif word in _TAKES_VALUE:
                self._options[word] = next(rest, "")
            elif not word.startswith("-"):
                words.append(word)
        self._prompt = words[0] if words else ""
        self._session = self._options.get("--session-id") or self._options.get("--resume") or ""

    def run(self) -> int:
        """Does the work of the prompt from where the session stands, and prints the result as JSON."""
        session = self._open()
        name = session["name"]
        step = self._script().get(session["prompt"], {})
        self._write(f"{name}.begun", f"{os.getpid()} {os.getppid()}")
        time.sleep(step.get("work_s", 0.0))
        for awaited in step.get("waits_for", ()):
            self._wait_for(awaited)
        if step.get("limit_s") and not session["limited"]:
            session["limited"] = True
            self._save(session)
            self._write(LIMIT, str(int(time.time() + step["limit_s"]) + 1))
        self._stop_at_limit()
        # One that was killed after its work sees in its session that it is done, as the real one does.
        if name not in self._read(EFFECTS).splitlines():
            if path := step.get("file", "notes.txt"):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(step.get("text", f"{session['prompt']}: done by a scripted agent\n"))
            self._append(EFFECTS, name)
        cost_usd = step.get("cost_usd", COST_USD)
        self._append(COSTS, f"{name} {cost_usd}")
        return self._answer(f"Done by a scripted agent: {session['prompt']}.", cost_usd=cost_usd)

    def _open(self) -> dict[str, Any]:
        """Begins a session with its first prompt, or takes an old one up again, as the real one does."""
        found = self._read(os.path.join(SESSIONS, self._session))
        if "--resume" in self._options:
            if not found:
                self._refuse(f"No conversation found with session ID: {self._session}")
            session: dict[str, Any] = json.loads(found)
            if self._prompt != CONTINUE:
                self._append(PROMPTS, f"{session['name']} again")
            return session
        if found:
            self._append(PROMPTS, f"{json.loads(found)['name']} again")
            self._refuse(f"Error: Session ID {self._session} is already in use.")
        name = self._script().get(self._prompt, {}).get("name", self._prompt)
        session = {"prompt": self._prompt, "name": name, "limited": False}
        self._save(session)
        self._append(PROMPTS, name)
        return session

    def _save(self, session: dict[str, Any]) -> None:
        self._write(os.path.join(SESSIONS, self._session), json.dumps(session))

    def _stop_at_limit(self) -> None:
        """Ends with the real one's words while the account's limit holds."""
        until = int(self._read(LIMIT) or 0)
        if time.time() < until:
            sys.exit(self._answer(f"Claude AI usage limit reached|{until}", cost_usd=0.0, is_error=True))

    def _wait_for(self, name: str) -> None:
        until_s = time.monotonic() + WAIT_S_MAX
        while not os.path.exists(os.path.join(self._place, name)) and time.monotonic() < until_s:
            time.sleep(_LOOK_S)

    def _answer(self, text: str, *, cost_usd: float, is_error: bool = False) -> int:
        result: dict[str, Any] = {
            "type": "result",
            "subtype": "success",
            "is_error": is_error,
            "num_turns": 1,
            "result": text,
            "session_id": self._session,
            "total_cost_usd": cost_usd,
            "permission_denials": [],
        }
        sys.stdout.write(f"{json.dumps(result)}\n")
        return int(is_error)

    def _refuse(self, text: str) -> NoReturn:
        sys.stderr.write(f"{text}\n")
        sys.exit(1)

    def _script(self) -> dict[str, dict[str, Any]]:
        script: dict[str, dict[str, Any]] = json.loads(self._read(SCRIPT) or "{}")
        return script

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self._place, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _write(self, name: str, text: str) -> None:
        """Writes a file that others see whole or not at all."""
        path = os.path.join(self._place, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.{os.getpid()}"
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)

    def _append(self, ledger: str, line: str) -> None:
        # One write to a file opened for appending, so that lines of agents side by side don't mix.
        descriptor = os.open(os.path.join(self._place, ledger), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(Agent(sys.argv[1], sys.argv[2:]).run())
