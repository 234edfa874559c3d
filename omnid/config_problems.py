"""How the problems of a config are said, and those of its lists, which can only be judged as wholes."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from omnid import links, recurrence
from omnid.errors import Rejected
from omnid.model import AGENT_ORIGIN, USER_ORIGIN
from omnid.secrets import is_reference, looks_plain
from omnid.settings import EVERY_OTHER, Cap, Executor, Preset
from omnid.settings import Origin as OriginSection
from omnid.settings_links import Link, Remote

SHOWN_CHARS_MAX = 200
HIDDEN = object()
"""Stands for a value that may hold a secret, wherever in it."""


def hint(name: str, known: list[str]) -> str:
    """Names the nearest of the known names, if one is near."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def unknown(key: str, known: list[str]) -> Rejected:
    """Says that there is no such key."""
    return Rejected("config_unknown_key", key=key, hint=hint(key, known))


def bad(key: str, value: object, detail: str) -> Rejected:
    """Says what is wrong with a value."""
    # A secret in a place where none belongs must not come out with the error.
    is_hidden = value is HIDDEN or looks_plain(key, str(value))
    shown = "(not set)" if value is None else "(hidden)" if is_hidden else repr(value)
    shown = re.sub(r"//[^/@\s]+@", "//(hidden)@", shown)
    return Rejected("config_bad_value", key=key, value=shown[:SHOWN_CHARS_MAX], detail=detail)


def presets(presets: tuple[Preset, ...]) -> Iterator[Rejected]:
    """Checks when presets run, and that each holds a task."""
    for preset in presets:
        for key, detail in recurrence.problems_of(preset):
            value = getattr(preset, key, None)
            yield bad(f"preset.{preset.name}.{key}", value, detail)


def money(executors: tuple[Executor, ...], caps: tuple[Cap, ...]) -> Iterator[Rejected]:
    """Checks that each cap holds for one thing that is there."""
    names = [executor.name for executor in executors]
    for cap in caps:
        where = f"cap.{cap.name}"
        if (cap.label is None) == (cap.executor is None):
            yield bad(f"{where}.label", cap.label, "a cap holds for one label or for one executor")
        elif cap.executor is not None and cap.executor not in names:
            detail = f"there is no executor of that name{hint(cap.executor, names)}"
            yield bad(f"{where}.executor", cap.executor, detail)
        if not cap.day_usd and not cap.month_usd:
            yield bad(f"{where}.day_usd", cap.day_usd, "a cap needs day_usd or month_usd")


def rights(executors: tuple[Executor, ...], origins: tuple[OriginSection, ...]) -> Iterator[Rejected]:
    """Checks what is said of origins; people's own has no bounds."""
    names = [executor.name for executor in executors]
    for section in origins:
        where = f"origin.{section.name}"
        if section.name == USER_ORIGIN:
            yield bad(f"{where}.name", section.name, "it is people's own, which has no bounds")
        if section.token and section.name == AGENT_ORIGIN:
            yield bad(f"{where}.token", None, "it is the name of agents that give none, so anybody could be it")
        elif section.token and section.name == EVERY_OTHER:
            detail = "a token names one origin; http.token is the one for all others"
            yield bad(f"{where}.token", None, detail)
        elif section.token and not is_reference(section.token):
            yield Rejected("secret_plain", key=f"{where}.token")
        for name in section.executors or ():
            if name not in names:
                detail = f"there is no executor of that name{hint(name, names)}"
                yield bad(f"{where}.executors", name, detail)


def runners(runner: dict[str, Any], given: tuple[Link, ...], executors: tuple[Executor, ...]) -> Iterator[Rejected]:
    """Checks the links, and what the runner is called and offers."""
    for link in given:
        where = f"link.{link.name}"
        for reference in (link.password, link.key, *link.accepted_keys):
            if reference and not is_reference(reference):
                yield Rejected("secret_plain", key=where)
        for key, detail in links.problems(link):
            yield bad(f"{where}.{key}", HIDDEN if key == "url" else getattr(link, key) or None, detail)
    names = [link.name for link in given]
    if runner.get("link", "") not in ("", *names):
        there = f"only {', '.join(names)}" if names else "and no other"
        detail = f"there is no link of that name{hint(runner['link'], names)}, {there}"
        # What is no name may be an address that was put into the wrong place.
        value = runner["link"] if links.END_NAME.fullmatch(str(runner["link"])) else HIDDEN
        yield bad("runner.link", value, detail)
    offerable = [executor.name for executor in executors if links.may_be_offered(executor)]
    for name in runner.get("executors", ()):
        if name not in offerable:
            detail = f"a runner offers executors of commands and MCP servers{hint(name, offerable)}"
            yield bad("runner.executors", name, detail)


def remotes(given: tuple[Remote, ...], known: tuple[Link, ...], executors: tuple[Executor, ...]) -> Iterator[Rejected]:
    """Checks the runners that the daemon sends to: each has a link that is there, and executors for it to run."""
    names = [link.name for link in known]
    offerable = [executor.name for executor in executors if links.may_be_offered(executor)]
    for remote in given:
        where = f"remote.{remote.name}"
        if remote.link not in names:
            detail = f"there is no link of that name{hint(remote.link, names)}"
            yield bad(f"{where}.link", remote.link, detail)
        if not remote.executors:
            yield bad(f"{where}.executors", [], "without an executor nothing would be sent to it")
        for name in remote.executors:
            if name not in offerable:
                detail = f"a runner offers executors of commands and MCP servers{hint(name, offerable)}"
                yield bad(f"{where}.executors", name, detail)
