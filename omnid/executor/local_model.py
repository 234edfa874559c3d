"""What the brainstem would start: which command, on which weights, and how much memory that takes.

Nothing is started here; files are looked at, so that what is missing is known before the cloud is gone.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from omnid.executor.workers import argv_of
from omnid.settings import GIB, Brainstem
from omnid.weights import Weights, find, look, size_of
from omnid.worker import brainstem as worker

PLACE = "{weights}"
"""Stands for the directory of the weights in the command of the config."""
PROGRAM = argv_of(worker)
ROOM_BYTES = GIB
"""What a server takes beside its weights: itself, and what it has read of a prompt."""
ANSWER_TOKENS_MAX = 2048
NAMED_MAX = 3


class Plan(NamedTuple):
    """What would be started now."""

    argv: tuple[str, ...] = ()
    memory_bytes: int = 0
    """What it needs."""
    weights: Weights | None = None
    """Of the cache; None: it brings its own."""
    problem: str = ""
    """Why it can't be started; empty: it can."""
    do: str = ""


def plan(section: Brainstem, root: str, environ: Mapping[str, str], program: Sequence[str] = PROGRAM) -> Plan:
    """Looks what the config asks for, and whether it is there; `root` is the directory of the cache."""
    of_cache = not section.argv or any(PLACE in part for part in section.argv)
    weights = find(root, section.weights) if of_cache else None
    if of_cache:
        problem = _trouble(section, weights)
        if weights is None or problem:
            return Plan(weights=weights, problem=problem, do=f"omnictl model pull {section.weights}")
    directory = "" if weights is None else weights.directory
    argv = tuple(part.replace(PLACE, directory) for part in section.argv) or (*program, *_of_mlx(section, directory))
    if shutil.which(argv[0], path=environ.get("PATH")) is None:
        return Plan(problem=f"there is no program {argv[0]}", do="Correct brainstem.argv in the config.")
    size_bytes = size_of(_named(argv[1:])) if weights is None else weights.size_bytes
    return Plan(argv, section.memory_bytes_min or size_bytes + ROOM_BYTES, weights)


def _trouble(section: Brainstem, weights: Weights | None) -> str:
    if weights is None:
        return f"the model {section.weights} is not in the cache"
    wrong = look(weights)
    if not wrong:
        return ""
    more = f" and {len(wrong) - NAMED_MAX} more" if len(wrong) > NAMED_MAX else ""
    return f"the model {section.weights} is damaged: {', '.join(wrong[:NAMED_MAX])}{more}"


def _of_mlx(section: Brainstem, directory: str) -> tuple[str, ...]:
    """Gives the arguments of `mlx_lm server`: one prompt at a time, and nothing of it kept for long."""
    url = urlsplit(section.base_url)
    return (
        *("--model", directory, "--host", url.hostname or "", "--port", str(url.port)),
        # By default any web page in a browser of this machine could use it.
        *("--allowed-origins", "http://127.0.0.1"),
        *("--decode-concurrency", "1", "--prompt-concurrency", "1", "--prompt-cache-size", "1"),
        *("--max-tokens", str(ANSWER_TOKENS_MAX), "--log-level", "WARNING"),
    )


def _named(arguments: Sequence[str]) -> list[str]:
    """Gives the paths that arguments name, ``--model=/path`` among them."""
    values = [part.partition("=")[2] if part.startswith("-") else part for part in arguments]
    return [value for value in values if os.path.isabs(value)]
