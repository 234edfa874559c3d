"""The check of JSON against schemas of servers: bounded in time, and nothing is fetched.

Schemas come from servers, so they are not trusted. Regular expressions are left to the server: one of them can take
longer than the machine lives, and Python can't interrupt it. Everything else is counted, so that references which
multiply (JSON Schema has no limit of its own) end in an error instead of a busy processor.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import msgspec

from omnid.errors import Rejected

STEPS_MAX = 50_000
"""How many keywords one check may apply; a call with a thousand fields needs a few thousand."""
SCHEMA_BYTES_MAX = 256 * 1024
DETAIL_CHARS_MAX = 300

Keyword = Callable[[Any, Any, Any, Any], Any]


class _TooLong(Exception):
    """The check needs more than `STEPS_MAX` steps."""


def check_arguments(tool: str, schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Raises Rejected ``bad_arguments`` where the arguments don't fit, or where the schema can't be used.

    To be called in a thread: it imports jsonschema, and the longest check takes about a second.
    """
    detail = misfit(schema, arguments)
    if detail is not None:
        raise Rejected("bad_arguments", tool=tool, detail=detail)


def misfit(schema: dict[str, Any], value: Any) -> str | None:
    """Says in what a value doesn't fit a schema, or why the schema can't be used; None where it fits.

    To be called in a thread, as `check_arguments`.
    """
    encoded = msgspec.json.encode(schema)
    if len(encoded) > SCHEMA_BYTES_MAX:
        return f"its schema has more than {SCHEMA_BYTES_MAX} bytes"
    try:
        error = _first_error(schema, value, patterns=b'"patternProperties"' in encoded)
    except _TooLong:
        return f"its schema takes more than {STEPS_MAX} steps to check"
    except Exception as fault:  # noqa: BLE001 - A schema that is none makes jsonschema fail in any way there is.
        return f"its schema can't be used: {type(fault).__name__} {fault}"[:DETAIL_CHARS_MAX]
    if error is None:
        return None
    where = error.json_path.removeprefix("$").removeprefix(".")
    return (f"{where}: {error.message}" if where else str(error.message))[:DETAIL_CHARS_MAX]


def _first_error(schema: dict[str, Any], value: Any, *, patterns: bool) -> Any:
    """Gives the error that explains most, or None; `patterns`: the schema has patternProperties somewhere."""
    # The library's types are partial, so it is used untyped.
    errors: Any = import_module("jsonschema.exceptions")
    validators: Any = import_module("jsonschema.validators")
    registry: Any = import_module("referencing").Registry()

    left_out = {"pattern", "patternProperties", "uniqueItems"}
    if patterns:
        # They run the patterns too, to find out which properties are additional.
        left_out |= {"additionalProperties", "unevaluatedProperties"}
    dialect = validators.validator_for(schema, default=validators.Draft202012Validator)
    counted = validators.extend(dialect, _counted(dialect.VALIDATORS, left_out))
    # With an empty registry, references lead to places within the schema, never over the network.
    return errors.best_match(counted(schema, registry=registry).iter_errors(value))


def _counted(keywords: dict[str, Keyword], left_out: set[str]) -> dict[str, Keyword]:
    """Gives the keywords of a dialect as ones that count their steps; those that are left out always hold."""
    steps = 0

    def counting(keyword: Keyword) -> Keyword:
        def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            nonlocal steps
            steps += 1
            if steps > STEPS_MAX:
                raise _TooLong
            yield from keyword(validator, value, instance, schema) or ()

        return apply

    return {name: _holds if name in left_out else counting(keyword) for name, keyword in keywords.items()}


def _holds(*_: Any) -> tuple[()]:
    return ()
