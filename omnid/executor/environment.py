"""The environment of programs that omnid runs: little of the daemon's own, and what the config adds to it."""

import sys
from collections.abc import Iterable, Mapping

from omnid.errors import Rejected, Retryable
from omnid.secrets import Secrets, is_reference
from omnid.settings import Executor as Section

BASE_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "TZ")
"""What every program gets of the daemon's environment, together with ``LC_*``."""


def names_for(section: Section, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names the variables that programs of this executor get."""
    languages = (name for name in environ if name.startswith("LC_"))
    return (*BASE_ENVIRONMENT, *languages, *section.env, *section.env_set)


async def gather(
    section: Section, names: Iterable[str], environ: Mapping[str, str], secrets: Secrets
) -> dict[str, str]:
    """Gathers the values of these variables; raises Retryable ``secret_missing`` where one can't be had now."""
    environment = {name: environ[name] for name in names if name in environ}
    if getattr(sys, "frozen", False):
        # It names the libraries that omnid was packed with, which are not those of other programs.
        environment.pop("LD_LIBRARY_PATH", None)
    for name, value in section.env_set.items():
        environment[name] = await resolved(section, name, value, secrets)
    return environment


async def resolved(section: Section, name: str, value: str, secrets: Secrets) -> str:
    """Gives a value of the config, or what it refers to; raises Retryable ``secret_missing`` where that isn't there."""
    try:
        return await secrets.resolve(value) if is_reference(value) else value
    except Rejected as error:
        # A person can provide it, so the work waits for that.
        detail = f"{error.fields['detail']} (it is {name} of executor {section.name})"
        raise Retryable("secret_missing", reference=error.fields["reference"], detail=detail) from error
