"""The forms that some texts must have, and their words for whoever gets one wrong: nobody reads a regex."""

from collections.abc import Mapping

from msgspec import ValidationError

_TIME = r"([01]\d|2[0-3]):[0-5]\d"
TIME_OR_NONE = rf"^({_TIME})?$"
HOURS = rf"^{_TIME}-{_TIME}$"
HOURS_OR_NONE = rf"^({_TIME}-{_TIME})?$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
NAME_OR_NONE = r"^([a-z0-9][a-z0-9._-]{0,63})?$"
LABEL = r"^[a-z0-9][a-z0-9._:-]{0,63}$"
WORDS = r"^[^*\s]([^*]*[^*\s])?\*?$"
_HERE = r"(127\.0\.0\.1|localhost|\[::1\])"
LOCAL_URL = rf"^http://{_HERE}:\d{{1,5}}(/[\w.-]+)*$"
SAFE_URL = rf"^(https://|http://{_HERE}[:/])[^\s@?#]*[^\s@?#/]$"
WEIGHTS_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
"""A model as its hub names it; `weights.NAME` is the same for who may not load msgspec."""
ORIGIN_OR_ALL = r"^(\*|[^\s/*]{1,100})$"
PARAM_NAME = r"^[a-z0-9_]{1,64}$"
EVENT = r"^(start|[a-z_]+\.(down|up)(:[A-Za-z0-9*][A-Za-z0-9*._/-]{0,199})?)$"
"""What a schedule can begin on: the start of omnid, or the begin or end of an outage: ``cloud.down``, ``link.up:a``."""
REVISIONS = r"^([0-9a-f]{40,64}(\.\.[0-9a-f]{40,64})?|copy)$"

SAID: Mapping[str, str] = {
    TIME_OR_NONE: "a time of day like 07:30",
    HOURS: "hours like 23:00-07:00",
    HOURS_OR_NONE: "hours like 23:00-07:00",
    NAME: "a name of at most 64 of a-z, 0-9, `.`, `_` and `-`, which begins with a letter or a digit",
    NAME_OR_NONE: "a name of at most 64 of a-z, 0-9, `.`, `_` and `-`, which begins with a letter or a digit",
    LABEL: "a word of at most 64 of a-z, 0-9, `.`, `_`, `:` and `-`, which begins with a letter or a digit",
    WORDS: "words with no `*` but at their end",
    LOCAL_URL: "an address on this machine with its port, like http://127.0.0.1:8642/v1",
    SAFE_URL: "an address with https:// (or http:// on this machine), without password, query or fragment",
    WEIGHTS_NAME: "a name like mlx-community/Qwen2.5-7B-Instruct-4bit",
    ORIGIN_OR_ALL: "a name of at most 100 characters without spaces, `/` and `*`, or `*` alone",
    PARAM_NAME: "a name of at most 64 of a-z, 0-9 and `_`",
    EVENT: "an event like start, cloud.down or executor.up:NAME",
    REVISIONS: "one full commit id, two of them with `..` between, or `copy`",
}


def said(error: ValidationError) -> str:
    """Gives what msgspec says of a value that doesn't fit, with patterns in words, and the name of what holds it."""
    text = str(error).replace(" - at `$.", ", at `")
    for pattern, words in SAID.items():
        text = text.replace(f"`str` matching regex {pattern!r}", words)
    return text
