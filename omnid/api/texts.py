"""What no text of a request may hold: NUL, which neither a program's argument nor PostgreSQL takes."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from msgspec import Struct

from omnid.errors import Rejected

NUL_IN_JSON = b"\\u0000"
"""How NUL stands in JSON; where this is not in a request, `refuse_nul` has nothing to look for."""

MAY_HOLD_NUL = frozenset({"stdin"})
"""Fields that are handed on as they are: ``find -print0`` makes NULs for a good reason."""


def refuse_nul(params: object, where: str) -> None:
    """Raises Rejected(`bad_request`) where a text in the parameters, or a name in an object, holds NUL."""
    waiting: list[tuple[str, object]] = [("", params)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            if "\0" in value:
                detail = f"{path} holds a NUL character, which neither a command line nor a database takes"
                raise Rejected("bad_request", detail=detail, where=where)
        else:
            waiting += _parts(path, value)


def _parts(path: str, value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Struct):
        names = [name for name in value.__struct_fields__ if name not in MAY_HOLD_NUL]
        return [(f"{path}.{name}".lstrip("."), getattr(value, name)) for name in names]
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, object]", value).items()
        return [pair for key, part in pairs for pair in ((f"a name in {path}", key), (f"{path}.{key}", part))]
    if isinstance(value, list | tuple):
        return [(f"{path}[{index}]", part) for index, part in enumerate(cast("list[object]", value))]
    return ()
