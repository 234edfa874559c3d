"""Text for terminals: made harmless, measured, fitted, painted.

What tasks and executors say is hostile until `clean` has seen it; everything here that makes a line cleans its text.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import get_terminal_size
from typing import NamedTuple, TextIO
from unicodedata import category, combining, east_asian_width

COLUMNS_DEFAULT = 80
_COLUMNS_MIN, _COLUMNS_MAX = 20, 500
_GAP = "  "

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}

_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})
"""Categories that move the cursor, turn the direction, hide, or can't be encoded."""

_JOINERS = "\u200c\u200d"
"""Format characters that words of some languages need, and that do no harm."""


class Cell(NamedTuple):
    """A field of a table, and the style in which it is painted."""

    text: str
    style: str = ""


def clean(text: str, keep: str = "") -> str:
    """Writes control, format and unencodable characters as escapes; those in `keep` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if category(char) not in _ESCAPED or char in _JOINERS or char in keep else _escape(char) for char in text
    )


def clean_lines(text: str) -> str:
    """Cleans output of several lines: newlines and tabs stay, a carriage return before a newline goes."""
    return clean(text.replace("\r\n", "\n"), keep="\n\t")


def width(text: str) -> int:
    """Gives the columns that cleaned text takes: two for wide characters, none for combining ones (UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def fit(text: str, columns: int) -> str:
    """Cuts cleaned text to at most `columns`, with an ellipsis where something was cut."""
    if width(text) <= columns:
        return text
    taken, used = 0, 1
    for char in text:
        used += _char_width(char)
        if used > columns:
            break
        taken += 1
    return text[:taken] + "…" if columns > 0 else ""


def pad(text: str, columns: int) -> str:
    """Fits text and fills it up with spaces to exactly `columns`."""
    fitted = fit(text, columns)
    return fitted + " " * (columns - width(fitted))


def wrap(text: str, columns: int) -> list[str]:
    """Breaks cleaned text at spaces into lines of at most `columns`; a longer word is broken anywhere."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and width(line) + 1 + width(word) <= columns:
            line += " " + word
            continue
        if line:
            lines.append(line)
        line = word
        while width(line) > columns:
            head = fit(line, columns + 1)[:-1] or line[:1]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line] if line or not lines else lines


def widths(rows: Sequence[Sequence[Cell]], columns: int) -> list[int]:
    """Shares `columns` among the columns of a table: each as wide as its content, the widest cut until all fit."""
    wanted = [max(width(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    free = columns - len(_GAP) * (len(wanted) - 1)
    wanted = [min(wish, max(free, 1)) for wish in wanted]
    while sum(wanted) > free and max(wanted) > 1:
        wanted[wanted.index(max(wanted))] -= 1
    return wanted


class Screen:
    """Standard output and standard error, as wide and as colourful as they are."""

    def __init__(self, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> None:
        self.stdout, self.stderr = stdout, stderr
        dumb = environ.get("TERM") == "dumb"
        self.colour = stdout.isatty() and not environ.get("NO_COLOR") and not dumb
        self.progress_shown = stderr.isatty() and not dumb
        self.columns = _columns(stdout, environ)
        self._progress = False

    def put(self, *parts: Cell | str) -> None:
        """Writes one line of data, its parts cleaned, painted and joined."""
        line = "".join(
            clean(part) if isinstance(part, str) else self._painted(clean(part.text), part.style) for part in parts
        )
        self.stdout.write(line.rstrip(" ") + "\n")

    def output(self, text: str) -> None:
        """Writes what a task printed, cleaned but for its lines, as it comes."""
        self.stdout.write(clean_lines(text))
        self.stdout.flush()

    def tell(self, line: str) -> None:
        """Writes one line, cleaned, to standard error: for the person, not for the pipe. A terminal gets it wrapped."""
        self.stdout.flush()
        lines = [clean(line)]
        if self.stderr.isatty():
            text = lines[0].lstrip(" ")
            indent = len(lines[0]) - len(text)
            # What begins with a space is a label and its text, as the lines of an error are.
            hang = len(lines[0]) - len(text.partition(" ")[2].lstrip(" ")) if indent else 0
            first, *more = wrap(text, max(self.columns - hang, _COLUMNS_MIN // 2))
            lines = [" " * indent + first, *(" " * hang + other for other in more)]
        self.stderr.write("\n".join(lines) + "\n")
        self.stderr.flush()

    def progress(self, line: str) -> None:
        """Writes over the line of progress; nothing where standard error is no terminal. Empty text removes it."""
        if self.progress_shown and (line or self._progress):
            self.stderr.write("\r\x1b[K" + fit(clean(line), self.columns - 1))
            self.stderr.flush()
            self._progress = bool(line)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Cell]], indent: str = "") -> None:
        """Writes a table as wide as the screen at most; without a header where that is empty."""
        lines = [tuple(Cell(clean(cell.text), cell.style) for cell in row) for row in rows]
        if header:
            lines.insert(0, tuple(Cell(title, "dim") for title in header))
        if not lines:
            return
        shares = widths(lines, self.columns - len(indent))
        for line in lines:
            padded = [Cell(pad(cell.text, share) + _GAP, cell.style) for cell, share in zip(line, shares, strict=True)]
            self.put(indent, *padded[:-1], Cell(fit(line[-1].text, shares[-1]), line[-1].style))

    def paragraph(
        self, label: str, text: str, label_columns: int = 0, style: str = "", label_style: str = "dim"
    ) -> None:
        """Writes a label and beside it the text, wrapped."""
        label = clean(label)
        beside = max(label_columns, width(label) + len(_GAP) if label else 0)
        for number, line in enumerate(wrap(clean(text, keep="\n"), max(self.columns - beside, _COLUMNS_MIN // 2))):
            left = Cell(pad(label, beside), label_style) if number == 0 and label else " " * beside
            self.put(left, Cell(line, style))

    def _painted(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and text and self.colour else text


def size(amount_bytes: float) -> str:
    """Says a number of bytes with a unit (decimal, as disks are sold): ``12 B``, ``3.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount_bytes < 999.5:
            return f"{amount_bytes:.0f} {unit}" if unit == "B" or amount_bytes >= 9.95 else f"{amount_bytes:.1f} {unit}"
        amount_bytes /= 1000
    return f"{amount_bytes:.1f} TB"


def _escape(char: str) -> str:
    code = ord(char)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def _char_width(char: str) -> int:
    if combining(char) or char in _JOINERS or category(char) in ("Mn", "Me"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def _columns(stdout: TextIO, environ: Mapping[str, str]) -> int:
    given = environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given):
        found = int(given)
    else:
        try:
            found = get_terminal_size(stdout.fileno()).columns or COLUMNS_DEFAULT
        except (OSError, ValueError):
            found = COLUMNS_DEFAULT
    return min(max(found, _COLUMNS_MIN), _COLUMNS_MAX)
