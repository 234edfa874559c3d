"""Tools of the suite that ask the client in rounds: `input_required` first, and then the call with the answers."""

import hashlib
import hmac
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError

from tests.conformance.contents import NOTHING, text

KEY = b"a key of the fixtures"
ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}


def asks(requests: dict[str, Any], state: str | None = None) -> dict[str, Any]:
    answer = {"resultType": "input_required", "inputRequests": requests}
    return answer if state is None else {**answer, "requestState": _signed(state)}


def question(message: str, field: str, kind: str = "string") -> dict[str, Any]:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def sampling(said: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": {"type": "text", "text": said}}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


def answers(params: Any) -> dict[str, Any]:
    """Gives the answers that came with a call, as plain JSON."""
    return {
        key: one if isinstance(one, dict) else one.model_dump(by_alias=True, mode="json", exclude_none=True)
        for key, one in (params.input_responses or {}).items()
    }


def _signed(state: str) -> str:
    return f"{state}.{hmac.new(KEY, state.encode(), hashlib.sha256).hexdigest()}"


def _state(params: Any) -> str:
    state, _, _ = (params.request_state or "").partition(".")
    if not hmac.compare_digest(_signed(state), params.request_state or ""):
        raise MCPError(types.INVALID_PARAMS, "The requestState isn't what was given out.")
    return state


def _fits(given: Any, field: str) -> bool:
    return isinstance(given, dict) and field in (given.get("content") or {})


async def _elicitation(_context: Any, params: Any) -> Any:
    given = answers(params).get("user_name")
    if not _fits(given, "name"):
        return asks({"user_name": question("What is your name?", "name")})
    return text(f"Hello, {given['content']['name']}!")


async def _sampling(_context: Any, params: Any) -> Any:
    given = answers(params).get("capital_question")
    if given is None:
        return asks({"capital_question": sampling("What is the capital of France?", 100)})
    return text(f"It said: {given.get('content')}")


async def _roots(_context: Any, params: Any) -> Any:
    given = answers(params).get("client_roots")
    return asks({"client_roots": ROOTS}) if given is None else text(f"The roots: {given.get('roots')}")


async def _with_state(_context: Any, params: Any) -> Any:
    if "confirm" not in answers(params):
        return asks({"confirm": question("Please confirm", "ok", "boolean")}, "confirm")
    return text(f"state-ok: {_state(params)}")


async def _several(_context: Any, params: Any) -> Any:
    wanted = {
        "user_name": question("What is your name?", "name"),
        "greeting": sampling("Generate a greeting", 50),
        "client_roots": ROOTS,
    }
    if wanted.keys() - answers(params).keys():
        return asks(wanted, "several")
    return text(f"All are there: {_state(params)}")


async def _rounds(_context: Any, params: Any) -> Any:
    given = answers(params)
    if "step2" in given and _state(params) == "two":
        return text("Both steps are done.")
    if "step1" in given and _state(params) == "one":
        return asks({"step2": question("Step 2: What is your favorite color?", "color")}, "two")
    return asks({"step1": question("Step 1: What is your name?", "name")}, "one")


async def _capable(context: Any, params: Any) -> Any:
    if answers(params):
        return text("It was answered.")
    declared = context.session.client_capabilities
    wanted: dict[str, Any] = {}
    if declared.elicitation is not None:
        wanted["user_name"] = question("What is your name?", "name")
    if declared.sampling is not None:
        wanted["greeting"] = sampling("Generate a greeting", 50)
    if declared.roots is not None:
        wanted["client_roots"] = ROOTS
    return asks(wanted) if wanted else text("There is nothing that it could ask.")


TOOLS: dict[str, tuple[dict[str, Any], Any]] = {
    f"test_input_required_result_{name}": (NOTHING, fn)
    for name, fn in {
        "elicitation": _elicitation,
        "sampling": _sampling,
        "list_roots": _roots,
        "request_state": _with_state,
        "multiple_inputs": _several,
        "multi_round": _rounds,
        "tampered_state": _with_state,
        "capabilities": _capable,
    }.items()
}
