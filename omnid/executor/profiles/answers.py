"""Takes the parts of an agent's answer out of the JSON that it prints: one document, or one in each line. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from msgspec import Struct

from omnid.executor.profiles.profile import Answer, Profile

HEAD_BYTES_MAX, TAIL_BYTES_MAX = 64 * 1024, 1024 * 1024
"""How much of a longer output is looked at: where a session is named, and where the answer stands."""


class Reported(Struct, frozen=True):
    """What an agent reported; None where it said nothing of it."""

    output: str | None = None
    error: str | None = None
    is_error: bool = False
    cost_usd: float | None = None
    session: str | None = None
    denied: tuple[str, ...] = ()
    document: Any = None
    """The last document that counted."""


def documents(content: bytes, *, cut: bool = False) -> list[Any]:
    """Decodes a document, or else those lines that hold one; with `cut` it is head and tail of a longer output."""
    if not cut and (whole := _decoded(content)):
        return whole
    lines = [document for line in content.splitlines() if line.startswith(b"{") for document in _decoded(line)]
    # Some programs print a line or two before a document that fills many.
    return lines or _decoded(content[content.find(b"\n{") + 1 :])


def _decoded(content: bytes) -> list[Any]:
    try:
        return [msgspec.json.decode(content)]
    except (msgspec.DecodeError, RecursionError):
        return []


def report(profile: Profile, found: Iterable[Any]) -> Reported | None:
    """Takes the parts out of documents; None where none of them is an answer."""
    parts: dict[str, Any] = {}
    last: Any = None
    for document in found:
        for answer in profile.answers:
            taken = _taken(answer, document)
            if taken:
                parts |= taken
                last = document
    if not parts:
        return None
    cost, session = parts.get("cost_usd"), parts.get("session")
    return Reported(
        output=_text(parts.get("output")),
        error=_text(parts.get("error")),
        is_error=parts.get("is_error") is True,
        cost_usd=float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) and cost >= 0 else None,
        session=session if isinstance(session, str) and session else None,
        denied=tuple(dict.fromkeys(name for name in _list(parts.get("denied")) if isinstance(name, str))),
        document=last,
    )


def _taken(answer: Answer, document: Any) -> Mapping[str, Any]:
    if any(find(document, path) != value for path, value in answer.match.items()):
        return {}
    found = {part: find(document, path) for part, path in answer.take.items()}
    return {part: value for part, value in found.items() if value is not None}


def find(value: Any, path: str) -> Any:
    """Follows a dotted path through objects and, by position or `*`, lists; None where it leads nowhere."""
    part, _, rest = path.partition(".")
    if isinstance(value, dict):
        inside = cast(dict[str, Any], value).get(part)
    elif isinstance(value, list):
        items = cast(list[Any], value)
        if part == "*":
            found = [find(item, rest) if rest else item for item in items]
            return [item for item in found if item is not None] or None
        inside = items[int(part)] if part.isdecimal() and int(part) < len(items) else None
    else:
        return None
    return find(inside, rest) if rest else inside


def _list(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    items = _list(value)
    if items and all(isinstance(item, str) for item in items):
        return "\n".join(items)
    return msgspec.json.encode(value).decode()
