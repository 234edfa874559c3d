"""All profiles, by name and by program."""

import os
from collections.abc import Mapping, Sequence

from omnid.executor.profiles import claude_code, codex, gemini, openclaw
from omnid.executor.profiles.profile import Profile
from omnid.settings import CommandExecutor

PROFILES: Mapping[str, Profile] = {
    module.PROFILE.name: module.PROFILE for module in (claude_code, codex, gemini, openclaw)
}
_BY_PROGRAM = {profile.program: profile for profile in PROFILES.values()}


def profile_of(section: CommandExecutor) -> Profile | None:
    """Gives the profile of an executor: the one that its section names, else that of the program that it runs."""
    if section.profile is not None:
        return PROFILES.get(section.profile)
    return _BY_PROGRAM.get(program_of(section.argv))


def program_of(argv: Sequence[str]) -> str:
    """Gives the name of the program without its directory."""
    return os.path.basename(argv[0]) if argv else ""
