"""The problems of commands that ended badly, and how their words are shortened."""

from omnid.executor.records import Exit, Spec
from omnid.model import Command, Problem

DETAIL_CHARS_MAX = 300


def exit_problem(command: Command, end: Exit, said: str) -> Problem:
    """Says that a command ended with a code that is no success."""
    return Problem.make("exit_code", code=end.code, detail=sentence(f"it said last: {said}"), task=command.name)


def reported_problem(command: Command, spec: Spec, said: str) -> Problem:
    """Says that a command ended well and reported an error all the same."""
    return Problem.make("reported_error", executor=spec.executor, detail=said, task=command.name)


def bad_result(spec: Spec, end: Exit, why: str) -> Problem:
    """Says why what a command printed can't be read."""
    if end.dropped_bytes:
        return Problem.make("spool_full", limit_bytes=spec.spool_bytes_max)
    return Problem.make("bad_result", executor=spec.executor, detail=why)


def sentence(text: str) -> str:
    """Makes a sentence of a clause."""
    return f"{text[0].upper()}{text[1:]}."


def last_line(text: str) -> str:
    """Gives the last line of what was printed."""
    lines = text.rstrip().splitlines()
    return shortened(lines[-1]) if lines else "nothing"


def shortened(text: str) -> str:
    """Cuts a text that is too long for a sentence."""
    text = text.strip()
    return text if len(text) <= DETAIL_CHARS_MAX else f"{text[:DETAIL_CHARS_MAX]}..."
