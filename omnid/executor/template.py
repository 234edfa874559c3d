"""Templates: the names of a task and its attempt inside texts of the config and of arguments."""

import re
from typing import Any, cast

from omnid.errors import Rejected
from omnid.model import Command

_FIELD = re.compile(r"\{((?:task|attempt)\.[^{}]*)\}")


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
    return _fill(template, names)


def _fill(template: Any, names: dict[str, str]) -> Any:
    if isinstance(template, str):
        return _FIELD.sub(lambda match: _name(template, match[1], names), template)
    if isinstance(template, dict):
        return {key: _fill(value, names) for key, value in cast(dict[str, Any], template).items()}
    if isinstance(template, (list, tuple)):
        return [_fill(value, names) for value in cast(list[Any], template)]
    return template


def _name(template: str, field: str, names: dict[str, str]) -> str:
    if field not in names:
        raise Rejected("bad_template", template=template[:200], detail=f"there is no {{{field}}}")
    return names[field]
