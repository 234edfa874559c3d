"""What people are told, in every language: plain data in `languages/`, one file each.

Kinds of notices have variants behind a dot; `notify` and `answers` fill in the fields.
"""

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

RESULT_CHARS_MAX = 600
KEPT = "\n\t\u200c\u200d"
"""What stays of control and format characters: lines, and the joiners of scripts and emoji."""

_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")

WORDS: Mapping[str, int] = {
    "1": 1,
    "approve": 1,
    "核准": 1,
    "2": 2,
    "again": 2,
    "重做": 2,
    "3": 3,
    "drop": 3,
    "放棄": 3,
}
"""What an answer may begin with, and the choice that it means."""


class _Fields(dict[str, str]):
    """A field that nobody gave is shown as a question mark: a notice with a gap beats none."""

    def __missing__(self, key: str) -> str:
        return "?"


@cache
def texts(language: str) -> Mapping[str, str]:
    """Gives all texts of a language."""
    return tomllib.loads(files("omnid.flow").joinpath("languages", f"{language}.toml").read_text(encoding="utf-8"))


def say(language: str, key: str, **fields: str) -> str:
    """Gives a text with its fields filled in; a variant that isn't there is said as its kind."""
    found = texts(language)
    text = found.get(key) or found[key.partition(".")[0]]
    return text.format_map(_Fields(fields))


def plain(text: str) -> str:
    """Takes out of a text what could steer a terminal or turn the reading direction; its lines stay."""
    text = _ESCAPE.sub("", text.replace("\r\n", "\n"))
    return "".join(c for c in text if c in KEPT or not unicodedata.category(c).startswith("C"))


def excerpt(text: str, chars_max: int = RESULT_CHARS_MAX) -> str:
    """Gives a text as it may stand in a message: cleaned, and without its middle where it is too long."""
    text = plain(text).strip()
    if len(text) <= chars_max:
        return text
    half = (chars_max - 5) // 2
    return f"{text[:half].rstrip()}\n...\n{text[-half:].lstrip()}"
