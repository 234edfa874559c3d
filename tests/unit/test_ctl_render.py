"""Text on terminals: harmless, measured and fitted, whatever executors say."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.ctl.render import Cell, Screen, clean, clean_lines, fit, pad, size, width, widths, wrap

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\rb",
    "a\x08b",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u2028line",
    "\x00",
    "\ud800",
    "\x7f",
    "\ufeff",
    "\U000e0041",
]
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40) | st.sampled_from(HOSTILE)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def harmless(text):
    return all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in text) and not any(
        unicodedata.bidirectional(char) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
        for char in text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_written_as_escapes(text):
    shown = clean(text)
    assert harmless(shown)
    assert "\\" in shown
    shown.encode()


@given(ANY_TEXT)
def test_any_text_becomes_harmless_and_encodable_and_stays_what_it_is_when_clean(text):
    shown = clean(text)
    assert harmless(shown)
    shown.encode()
    assert clean(shown) == shown


def test_output_keeps_its_lines_and_nothing_else_of_control():
    assert clean_lines("a\r\nb\tc\n\x1b[1mx") == "a\nb\tc\n\\x1b[1mx"


def test_widths_follow_the_terminal():
    assert width("abc") == 3
    assert width("日本語") == 6
    assert width("ｶﾀｶﾅ") == 4
    assert width("e\u0301") == 1
    assert width("✓") == 1


@given(ANY_TEXT, st.integers(0, 60))
def test_fitted_text_fits(text, columns):
    text = clean(text)
    assert width(fit(text, columns)) <= columns
    assert width(pad(text, columns)) == columns
    if width(text) <= columns:
        assert fit(text, columns) == text
    elif columns > 0:
        assert fit(text, columns).endswith("…")


@given(ANY_TEXT, st.integers(2, 60))
def test_wrapped_text_fits_and_loses_nothing(text, columns):
    text = clean(text)
    lines = wrap(text, columns)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@given(st.lists(st.lists(ANY_TEXT, min_size=4, max_size=4), min_size=1, max_size=6), st.integers(20, 120))
def test_a_table_is_never_wider_than_the_screen(rows, columns):
    out = io.StringIO()
    screen = Screen(out, io.StringIO(), {"COLUMNS": str(columns)})
    screen.table(("A", "B", "C", "D"), [[Cell(text) for text in row] for row in rows])
    lines = out.getvalue().split("\n")
    assert len(lines) == len(rows) + 2
    assert all(width(line) <= columns and harmless(line) for line in lines)


def test_the_widest_column_gives_way_first():
    cells = [[Cell("t7"), Cell("completed"), Cell("x" * 200)]]
    assert widths(cells, 80) == [2, 9, 80 - 2 - 9 - 4]


@given(st.text(max_size=30), st.text(max_size=200), st.integers(20, 100))
def test_a_paragraph_fits_and_is_harmless(label, text, columns):
    out = io.StringIO()
    Screen(out, io.StringIO(), {"COLUMNS": str(columns)}).paragraph(clean(label)[:8], text, 10)
    assert all(width(line) <= columns and harmless(line) for line in out.getvalue().split("\n"))


@pytest.mark.parametrize(
    ("stream", "environ", "colour"),
    [
        (Terminal, {}, True),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": ""}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(stream, environ, colour):
    out = stream()
    Screen(out, io.StringIO(), environ).put("a ", Cell("b\x1b", "red"), Cell("c"))
    assert out.getvalue() == ("a \x1b[31mb\\x1b\x1b[0mc\n" if colour else "a b\\x1bc\n")


def test_progress_is_one_line_rewritten_and_removed():
    err = Terminal()
    screen = Screen(io.StringIO(), err, {"COLUMNS": "20"})
    screen.progress("")
    assert err.getvalue() == ""
    screen.progress("t7 executing \x1b[31m a long way to go")
    screen.progress("")
    first, second = err.getvalue().split("\r\x1b[K")[1:]
    assert width(first) <= 19
    assert harmless(first)
    assert second == ""


def test_what_is_told_fits_a_terminal_and_is_one_line_in_a_pipe():
    line = "  why: It was never submitted here, was deleted, or was removed after its time."
    terminal, pipe = Terminal(), io.StringIO()
    for err in (terminal, pipe):
        Screen(io.StringIO(), err, {"COLUMNS": "50"}).tell(line)
    assert pipe.getvalue() == f"{line}\n"
    assert terminal.getvalue().splitlines() == [
        "  why: It was never submitted here, was",
        "       deleted, or was removed after its time.",
    ]


@pytest.mark.parametrize("environ", [{}, {"TERM": "dumb"}])
def test_no_progress_where_it_can_not_be_rewritten(environ):
    err = Terminal() if environ else io.StringIO()
    Screen(io.StringIO(), err, environ).progress("t7 executing")
    assert err.getvalue() == ""


def test_width_of_the_screen():
    assert Screen(io.StringIO(), io.StringIO(), {}).columns == 80
    assert Screen(io.StringIO(), io.StringIO(), {"COLUMNS": "100"}).columns == 100
    assert Screen(io.StringIO(), io.StringIO(), {"COLUMNS": "1"}).columns == 20
    assert Screen(io.StringIO(), io.StringIO(), {"COLUMNS": "wide"}).columns == 80


@pytest.mark.parametrize(
    ("amount_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345, "12 kB"), (12_300_000_000, "12 GB"), (2.5e12, "2.5 TB")],
)
def test_sizes_as_said(amount_bytes, text):
    assert size(amount_bytes) == text
