"""A server's list of tools, as far as it can be used: a tool that is described wrongly is left out, not the server.

Importing this module imports the SDK's types; only `mcp_session` does.
"""

from collections.abc import Mapping
from typing import Any, cast

import mcp_types as types
from mcp_types import methods
from pydantic import ValidationError

METHOD = "tools/list"
NAME_CHARS_MAX = 200


def usable(result: dict[str, Any], version: str) -> tuple[dict[str, Any], dict[str, ValidationError]]:
    """Gives a result of ``tools/list`` without the tools that the protocol's version doesn't allow, and what they lack.

    What is wrong with the rest of the result stays in it, for the SDK to say.
    """
    tools = result.get("tools")
    if not isinstance(tools, list) or _fault({**result, "tools": []}, version) is not None:
        return result, {}
    kept: list[object] = []
    faults: dict[str, ValidationError] = {}
    for tool in cast("list[object]", tools):
        fault = _fault({**result, "tools": [tool]}, version)
        if fault is None:
            kept.append(tool)
        else:
            name = cast("Mapping[str, object]", tool).get("name") if isinstance(tool, Mapping) else None
            faults[str(name)[:NAME_CHARS_MAX]] = fault
    return {**result, "tools": kept}, faults


def _fault(result: dict[str, Any], version: str) -> ValidationError | None:
    try:
        methods.validate_server_result(METHOD, version, result)
        types.ListToolsResult.model_validate(result, by_name=False)
    except ValidationError as error:
        return error
    except KeyError:
        # A version without this method: the SDK takes the result as it is.
        return None
    return None
