"""Reads how a run of an agent ended: a success, an error inside it, a limit, a denied tool, a lost session."""

import os
import re
from pathlib import Path
from zoneinfo import ZoneInfo

import anyio.to_thread

from omnid.executor.ends import bad_result, exit_problem, last_line, reported_problem, shortened
from omnid.executor.profiles.answers import HEAD_BYTES_MAX, TAIL_BYTES_MAX, Reported, documents, report
from omnid.executor.profiles.limits import AHEAD_S_MAX, Limit, find, is_alone
from omnid.executor.profiles.profile import Profile
from omnid.executor.records import Agent, Exit, Spec
from omnid.executor.spool import Spool
from omnid.model import Command, Outcome, Park, Problem
from omnid.worker import supervisor


class AgentReading:
    """The reading of one run: `read` first, then `verdict`."""

    def __init__(self, profile: Profile, command: Command, spec: Spec, end: Exit, zone: ZoneInfo) -> None:
        self._profile = profile
        self._agent = spec.agent or Agent(profile=profile.name)
        self._command = command
        self._spec = spec
        self._exit = end
        self._zone = zone
        self._printed = ""
        self._answered = False
        self.reported = Reported()
        self.park: Park | None = None

    async def read(self, spool: Spool, printed: str) -> None:
        """Takes over what it printed: on both streams as text, and the answer on its standard output."""
        self._printed = printed
        if self._agent.structured:
            found = await read_report(self._profile, spool, self._command.attempt_id)
            self._answered = found is not None
            self.reported = found or Reported()

    def verdict(self) -> tuple[Outcome, Problem] | None:
        """Decides about a run that ended by itself; None where it is a success as far as the agent can tell."""
        reported = self.reported
        failed = self._exit.code not in self._spec.success_exit_codes or reported.is_error or bool(reported.error)
        said = self._said()
        if failed or is_alone(self._profile.texts, said):
            return self._session_verdict() or self._limit_verdict(said) or self._failure(said)
        if reported.denied and not self._check_passed():
            tools = ", ".join(reported.denied[:10])
            name = self._spec.executor
            return "rejected", Problem.make("agent_denied", executor=name, tools=tools, task=self._command.name)
        if self._agent.structured and not self._answered:
            return "failure", self._without_answer()
        if not self._printed.strip():
            return "failure", self._silent()
        return None

    def _said(self) -> str:
        """Gives its own word where it gave an answer, else all that it printed."""
        return (self.reported.error or self.reported.output or "") if self._answered else self._printed

    def _session_verdict(self) -> tuple[Outcome, Problem] | None:
        sessions = self._profile.sessions
        pattern = sessions.missing if self._agent.resume else sessions.taken
        found = None if pattern is None else re.search(pattern, self._printed, re.IGNORECASE)
        if found is None:
            return None
        said = f"It said: {shortened(_line_of(self._printed, found.start()))}"
        name, task = self._spec.executor, self._command.name
        if self._agent.resume:
            return "failure", Problem.make("session_gone", executor=name, said=said, task=task)
        return "failure", Problem.make("session_taken", executor=name, said=said)

    def _limit_verdict(self, said: str) -> tuple[Outcome, Problem] | None:
        limit = find(self._profile.texts, said, self._exit.ended_at_ms, self._zone)
        if limit is None:
            return None
        self.park = Park(limit.cause, limit.wake_at_ms)
        name, said = self._spec.executor, _sentence(limit)
        if limit.cause == "login":
            return "parked", Problem.make("agent_login", executor=name, said=said)
        return "parked", Problem.make("agent_limit", executor=name, said=said, task=self._command.name)

    def _failure(self, said: str) -> tuple[Outcome, Problem]:
        text = shortened(said) if self._answered else last_line(said)
        if self._exit.code not in self._spec.success_exit_codes:
            return "failure", exit_problem(self._command, self._exit, text or "nothing")
        return "failure", reported_problem(self._command, self._spec, text or "it doesn't say what")

    def _without_answer(self) -> Problem:
        if not self._printed.strip():
            return self._silent()
        return bad_result(
            self._spec, self._exit, f"there is no whole answer in it; it ends: {last_line(self._printed)}"
        )

    def _silent(self) -> Problem:
        return Problem.make("agent_silent", executor=self._spec.executor, task=self._command.name)

    def _check_passed(self) -> bool:
        """Tells whether a check has decided that it is done, which it knows better than the agent."""
        return self._exit.check is not None and self._exit.check.code == 0


async def read_report(profile: Profile, spool: Spool, attempt_id: str) -> Reported | None:
    """Reads the answer of an attempt, also of one that broke off; None where there is none."""
    path = spool.directory(attempt_id) / supervisor.STDOUT
    return await anyio.to_thread.run_sync(_read_report, profile, path)


def _read_report(profile: Profile, path: Path) -> Reported | None:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes <= HEAD_BYTES_MAX + TAIL_BYTES_MAX:
                return report(profile, documents(file.read(size_bytes)))
            head = file.read(HEAD_BYTES_MAX)
            file.seek(size_bytes - TAIL_BYTES_MAX)
            # Both are cut inside a line, and half a line is no document.
            return report(profile, documents(head + b"\n" + file.read(TAIL_BYTES_MAX), cut=True))
    except FileNotFoundError:
        return None


def _line_of(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].split("\n", 1)[0]


def _sentence(limit: Limit) -> str:
    end = "" if limit.said.endswith((".", "!", "?")) else "."
    days = AHEAD_S_MAX // 86_400
    return f"{limit.said}{end}" + (f" That is more than {days} days ahead; it is tried then." if limit.capped else "")
