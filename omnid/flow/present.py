"""Which executors are of any use here: a built-in agent whose program isn't installed is not."""

import shutil

from omnid.config import BUILT_IN
from omnid.settings import AGENT_PROGRAMS, Config


def is_present(config: Config, name: str) -> bool:
    """Tells whether an executor is one that somebody has set up, or an agent that is installed."""
    program = next((program for program, agent in AGENT_PROGRAMS.items() if agent == name), None)
    if program is None or config.executors().get(name) != BUILT_IN[name]:
        return True
    return shutil.which(program) is not None
