"""What an attempt of an agent runs: its words, its standard input, and what its reading needs. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from omnid.executor.profiles.calls import (
    Run,
    can_go_on,
    is_structured,
    own_session,
    plain_words,
    read_run,
    with_cost,
    with_defaults,
    words_of,
)
from omnid.executor.profiles.known import profile_of, program_of
from omnid.executor.profiles.profile import Profile
from omnid.executor.records import Agent
from omnid.model import Command, Work
from omnid.settings import CommandExecutor


class Plan(NamedTuple):
    """One start of a program."""

    argv: tuple[str, ...]
    stdin: str | None
    agent: Agent | None
    """None: it is no run of an agent."""


def words(profile: Profile | None, before: Sequence[str], work: Work) -> tuple[str, ...]:
    """Gives the config's words and the task's; a task may name the agent's program once more."""
    asked = work.argv or ()
    if profile is not None and before and program_of(asked) == profile.program:
        asked = asked[1:]
    return (*before, *asked)


def run_of(profile: Profile, section: CommandExecutor, before: Sequence[str], work: Work) -> Run | None:
    """Gives the run that the work asks for, with all defaults; None where it asks for something else."""
    if work.prompt is not None:
        run = read_run(profile, before or (profile.program,), prompted=True)
        run = None if run is None else run._replace(prompt=work.prompt)
    else:
        run = read_run(profile, words(profile, before, work))
    if run is None or (run.prompt is None and work.stdin is None):
        return None
    return with_defaults(profile, section, run)


def has_own_words(section: CommandExecutor, work: Work) -> bool:
    """Tells whether work brings the agent of an executor more than a prompt and the format of its answer.

    Such words could take from it what holds it back: its permissions, its settings, its sandbox, its very program.
    """
    profile = profile_of(section)
    if profile is None or work.argv is None:
        return False
    asked = work.argv
    if program_of(asked) == profile.program and (section.argv or asked[0] == profile.program):
        asked = asked[1:]
    elif not section.argv:
        return True
    own = read_run(profile, (profile.program, *asked), prompted=True)
    if own is None or run_of(profile, section, section.argv, work) is None:
        return True
    usual = {default.words for default in profile.defaults}
    return any(flag.name not in profile.structured and flag.words not in usual for flag in own.flags)


def exact_words(profile: Profile | None, section: CommandExecutor, work: Work) -> tuple[str, ...]:
    """Gives the words that would run, without those that differ between attempts."""
    run = None if profile is None else run_of(profile, section, section.argv, work)
    if profile is None or run is None:
        return words(profile, section.argv, work)
    return plain_words(profile, run)


def plan(profile: Profile, section: CommandExecutor, before: Sequence[str], command: Command, *, resume: bool) -> Plan:
    """Plans an attempt: the first prompt, or with `resume` the session's going on, where it can."""
    work = command.work
    run = run_of(profile, section, before, work)
    if run is None:
        return Plan(words(profile, before, work), work.stdin, None)
    run = with_cost(profile, run, command.cost_max_usd)
    keeps = can_go_on(profile, run)
    session = (own_session(profile, run, command.task_id, command.executor) or command.session) if keeps else None
    resume = resume and session is not None
    named = session if resume or profile.sessions.by == "us" else None
    agent = Agent(
        profile=profile.name,
        session=session if named else None,
        resume=resume,
        resumable=keeps,
        structured=is_structured(profile, run),
    )
    return Plan(words_of(profile, run, named, resume=resume), None if resume else work.stdin, agent)
