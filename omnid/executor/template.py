"""Templates: the names of a task and its attempt, or of parameters, inside texts of the config and of arguments."""

import re
from collections.abc import Mapping
from typing import Any, cast

from omnid.errors import Rejected
from omnid.model import Command

_OF_COMMAND = "task|attempt"


def fill(template: Any, command: Command) -> Any:
    """Replaces ``{task.id}``, ``{task.name}``, ``{task.prompt}``, ``{attempt.id}`` and ``{attempt.number}`` in texts.

    Keys and all other braces stay. Raises Rejected ``bad_template`` for any other name of a task or attempt.
    """
    names = {
        "task.id": command.task_id,
        "task.name": command.name,
        "task.prompt": command.work.prompt or "",
        "attempt.id": command.attempt_id,
        "attempt.number": str(command.number),
    }
    return fill_names(template, _OF_COMMAND, names)


def fill_names(template: Any, of: str, names: Mapping[str, str]) -> Any:
    """Replaces ``{of.x}`` in texts by what `names` has under ``of.x``; `of` may be several words, ``a|b``.

    Raises Rejected(`bad_template`) where there is no such name.
    """
    return _fill(template, re.compile(rf"\{{((?:{of})\.[^{{}}]*)\}}"), names)


def _fill(template: Any, field: re.Pattern[str], names: Mapping[str, str]) -> Any:
    if isinstance(template, str):
        return field.sub(lambda match: _name(template, match[1], names), template)
    if isinstance(template, dict):
        return {key: _fill(value, field, names) for key, value in cast(dict[str, Any], template).items()}
    if isinstance(template, (list, tuple)):
        return [_fill(value, field, names) for value in cast(list[Any], template)]
    return template


def _name(template: str, field: str, names: Mapping[str, str]) -> str:
    if field not in names:
        raise Rejected("bad_template", template=template[:200], detail=f"there is no {{{field}}}")
    return names[field]
