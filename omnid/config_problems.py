"""How the problems of a config are said."""

import re
from difflib import get_close_matches

from omnid.errors import Rejected
from omnid.secrets import looks_plain

SHOWN_CHARS_MAX = 200


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
    shown = "(not set)" if value is None else "(hidden)" if looks_plain(key, str(value)) else repr(value)
    shown = re.sub(r"//[^/@\s]+@", "//(hidden)@", shown)
    return Rejected("config_bad_value", key=key, value=shown[:SHOWN_CHARS_MAX], detail=detail)
