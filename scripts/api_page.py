"""Writes docs/api.md from the table of operations: `.venv/bin/python scripts/api_page.py`. A test compares the two."""

import ast
import inspect
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from omnid.api.methods import METHODS, Method

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """\
# The operations

<!-- scripts/api_page.py writes this page from omnid/api/methods.py. -->

omnid does these things, and nothing else. They are called over the socket as JSON-RPC 2.0, one message a line, with
`omnid/` before the name:

```text
{"jsonrpc": "2.0", "id": 1, "method": "omnid/task.get", "params": {"task": "t7", "wait_s": 10}}
{"jsonrpc": "2.0", "id": 1, "result": {"task": {"name": "t7", "state": "completed", ...}, ...}}
```

`omnid.api.client` is this in Python, `omnictl VERB --json` prints the results, and the [MCP tools](mcp.md) are a
part of it. Unknown parameters are refused. Times are Unix milliseconds (`_at_ms`, `_ms`), durations seconds (`_s`),
sizes bytes (`_bytes`). A `task` is a UUID, a short name (`t7`) of the caller's origin, or `origin/t7`.

A connection may begin with `omnid/hello`, which says who is on it: `role` (`person` or `agent`), `origin`, and
`session`. Within a session the request ids make mutations repeatable: one that is sent again with the same id is
answered with the answer of then, and not done again. `attempt` is what a command finds in its `OMNID_ATTEMPT`: the
task of that attempt is the parent of what is submitted.

An error is -32602 where parameters don't fit, -32601 where there is no such operation, and -32000 otherwise. Its `data`
holds `code`, `what`, `why`, `do`, and `kind`: `retryable` (it may work later, unchanged), `rejected` (never) or `fatal`
(the daemon ends).
"""


def page() -> str:
    """Gives the page."""
    parts = [HEAD]
    parts += [_operation(method) for method in METHODS.values()]
    _, components = msgspec.json.schema_components([method.result for method in METHODS.values()])
    parts.append("## Shapes\n\nWhat results are made of.\n")
    parts += [_shape(name, components) for name in sorted(components)]
    return "\n".join(parts)


def _operation(method: Method) -> str:
    says = inspect.getdoc(method.handler) or ""
    who = "People and agents" if "agent" in method.roles else "People only"
    _, components = msgspec.json.schema_components([method.params])
    name = method.params.__name__
    lines = [f"## {method.name}", "", f"{says} {who}.", ""]
    rows = _rows(name, components)
    if rows:
        lines += ["| parameter | type | |", "|---|---|---|", *rows, ""]
    lines.append(f"Result: {_link(method.result.__name__)}.\n")
    return "\n".join(lines)


def _shape(name: str, components: dict[str, Any]) -> str:
    says = inspect.cleandoc(components[name].get("description", ""))
    lines = [f"### {name}", "", says, "", "| field | type | |", "|---|---|---|", *_rows(name, components), ""]
    return "\n".join(lines)


def _rows(name: str, components: dict[str, Any]) -> list[str]:
    source = components[name]
    is_params = name in _OPERATION_OF
    comments = _comments(name)
    rows: list[str] = []
    for field, part in source["properties"].items():
        parts = [part, *part.get("anyOf", ())]
        notes = [next((one["description"] for one in parts if "description" in one), comments.get(field, ""))]
        if is_params and field in source.get("required", ()):
            notes.append("required")
        if part.get("default"):
            notes.append(f"default {msgspec.json.encode(part['default']).decode()}")
        # A parameter that may be null is one that may be left out.
        kinds = [_type(one) for one in parts if "anyOf" not in one and not (is_params and one.get("type") == "null")]
        said = "; ".join(note.rstrip(".") for note in notes if note)
        rows.append(f"| `{field}` | {' or '.join(kinds)} | {said} |".replace("|  |", "| |"))
    return rows


_OPERATION_OF = {method.params.__name__: method.name for method in reversed(METHODS.values())}
"""The operation whose parameters a struct holds; the first, where there are several."""


_MODULES = {
    sys.modules[kind.__module__]: None for method in METHODS.values() for kind in (method.params, method.result)
}
"""Where the structs are defined, or imported."""


def _type(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return _link(part["$ref"].rpartition("/")[2])
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    kind = part.get("type", "any")
    if kind == "array" and part.get("items"):
        return f"list of {_type(part['items'])}"
    low, high = part.get("minimum"), part.get("maximum")
    return f"{kind}, {low} to {high}" if low is not None and high is not None else kind


def _link(name: str) -> str:
    anchor = _OPERATION_OF.get(name, name).replace(".", "").lower()
    return f"[{name}](#{anchor})"


def _comments(name: str) -> dict[str, str]:
    """Gives the sentences that stand below the fields of a struct in its source."""
    kind = next((getattr(module, name) for module in _MODULES if hasattr(module, name)), None)
    if kind is None:
        return {}
    (struct,) = ast.parse(inspect.getsource(kind)).body
    body = struct.body if isinstance(struct, ast.ClassDef) else []
    found: dict[str, str] = {}
    for field, below in pairwise(body):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
