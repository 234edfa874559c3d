"""The agent of the night demo: a script that stands in for Claude Code, and says so.

It takes the flags of ``claude -p`` that omnid uses, keeps its sessions in files, and does what a script file tells it
for each prompt: wait, hit a usage limit, edit a file, cost something. What it is given and what it does it writes into
ledgers, which the demo counts. Run by its path: ``python -I -S demo_agent.py PLACE ARGUMENTS...``.
"""

import json
import os
import sys
import time
from typing import Any, NoReturn

SCRIPT, PROMPTS, EFFECTS, LIMIT, DOOR, SESSIONS = "script.json", "prompts", "effects", "limit", "door", "sessions"
CONTINUE = "continue"
WAIT_S_MAX = 60.0

_TAKES_VALUE = frozenset(
    {
        "--session-id",
        "--resume",
        "--output-format",
        "--permission-mode",
        "--allowedTools",
        "--allowed-tools",
        "--max-budget-usd",
        "--model",
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
            if word in _TAKES_VALUE:
                self._options[word] = next(rest, "")
            elif not word.startswith("-"):
                words.append(word)
        self._prompt = words[0] if words else ""
        self._session = self._options.get("--session-id") or self._options.get("--resume") or ""

    def run(self) -> int:
        """Does the work of the prompt from where the session stands, and prints the result as JSON."""
        session = self._open()
        step = self._script().get(session["prompt"], {})
        if step.get("limit_s") and not session["limited"]:
            session["limited"] = True
            self._save(session)
            self._close_for(step["limit_s"])
        self._stop_at_limit()
        if step.get("held"):
            self._mark(f"{session['name']}.begun")
            self._wait_for_door()
        with open(step.get("file", "notes.txt"), "a", encoding="utf-8") as file:
            file.write(f"{session['name']}: done by the demo's agent\n")
        self._append(EFFECTS, session["name"])
        return self._answer(f"I did it: {session['prompt']}.", cost_usd=step.get("cost_usd", 0.05))

    def _open(self) -> dict[str, Any]:
        """Begins a session with its first prompt, or takes an old one up again, as the real one does."""
        path = self._path(os.path.join(SESSIONS, self._session))
        if "--resume" in self._options:
            try:
                with open(path, encoding="utf-8") as file:
                    session: dict[str, Any] = json.load(file)
            except FileNotFoundError:
                self._refuse(f"No conversation found with session ID: {self._session}")
            if self._prompt != CONTINUE:
                self._append(PROMPTS, f"{session['name']} again")
            return session
        if os.path.exists(path):
            self._refuse(f"Error: Session ID {self._session} is already in use.")
        name = self._script().get(self._prompt, {}).get("name", self._prompt)
        session = {"prompt": self._prompt, "name": name, "limited": False}
        self._save(session)
        self._append(PROMPTS, name)
        return session

    def _save(self, session: dict[str, Any]) -> None:
        path = self._path(os.path.join(SESSIONS, self._session))
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(session, file)
        os.replace(f"{path}.new", path)

    def _close_for(self, limit_s: float) -> None:
        with open(self._path(LIMIT), "w", encoding="ascii") as file:
            file.write(str(int(time.time() + limit_s) + 1))

    def _stop_at_limit(self) -> None:
        """Ends with the real one's words while the account's limit holds."""
        try:
            with open(self._path(LIMIT), encoding="ascii") as file:
                until = int(file.read() or 0)
        except FileNotFoundError:
            return
        if time.time() < until:
            self._answer(f"Claude AI usage limit reached|{until}", cost_usd=0.0, is_error=True)
            sys.exit(1)

    def _wait_for_door(self) -> None:
        until_s = time.monotonic() + WAIT_S_MAX
        while not os.path.exists(self._path(DOOR)) and time.monotonic() < until_s:
            time.sleep(0.05)

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
        print(json.dumps(result))
        return int(is_error)

    def _refuse(self, text: str) -> NoReturn:
        print(text, file=sys.stderr)
        sys.exit(1)

    def _script(self) -> dict[str, dict[str, Any]]:
        with open(self._path(SCRIPT), encoding="utf-8") as file:
            return json.load(file)

    def _append(self, ledger: str, line: str) -> None:
        # One write to a file opened for appending, so that lines of agents side by side don't mix.
        descriptor = os.open(self._path(ledger), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    def _mark(self, name: str) -> None:
        with open(self._path(name), "w", encoding="ascii"):
            pass

    def _path(self, name: str) -> str:
        return os.path.join(self._place, name)


if __name__ == "__main__":
    sys.exit(Agent(sys.argv[1], sys.argv[2:]).run())
