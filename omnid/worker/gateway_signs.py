"""What is seen of a call's failure: the provider's own answer, or the system's error below all that is around it.

Standard library only: the gateway's process takes it from beside its own file, and `executor.direct` from here.
"""

import errno
import json
from collections.abc import Iterator
from typing import Any, Literal

BODY_CHARS_MAX = 64 * 1024
LITELLM_OWN = 500
"""The status of errors to which no provider gave one."""
HEADERS = ("retry-after", "ratelimit", "request-id")
"""The parts of names by which the headers are known that are worth passing on."""

What = Literal[
    "dns", "refused", "unreachable", "tls", "connect_timeout", "silence", "cut", "garbage", "unsendable", "unknown"
]
Record = dict[str, Any]

_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
_CONNECTING = {"ConnectError", "ClientConnectorError", "ConnectTimeout", "PoolTimeout", "ConnectionTimeoutError"}
_NAMES: dict[What, frozenset[str]] = {
    "dns": frozenset({"gaierror", "ClientConnectorDNSError"}),
    "tls": frozenset({"SSLError", "ClientSSLError"}),
    "refused": frozenset({"ConnectionRefusedError"}),
    "connect_timeout": frozenset({"ConnectTimeout", "PoolTimeout", "ConnectionTimeoutError"}),
    "silence": frozenset({"ReadTimeout", "WriteTimeout", "SocketTimeoutError"}),
    "garbage": frozenset({"JSONDecodeError", "DecodingError", "UnicodeDecodeError"}),
    "unsendable": frozenset({"LocalProtocolError", "UnsupportedProtocol", "InvalidURL", "InvalidHeader"}),
    "cut": frozenset({"ConnectionResetError", "BrokenPipeError", "BrokenResourceError", "ReadError", "WriteError"})
    | {"RemoteProtocolError", "ServerDisconnectedError", "ClientPayloadError"},
}
"""By the names of classes, their bases included, so that no library has to be imported to be known; the first fits."""


def trouble_of(error: BaseException) -> tuple[What, bool]:
    """Says what kind of trouble an error comes from, and whether the request can have been sent before it."""
    chain = list(chained(error))
    names = [{kind.__name__ for kind in type(link).__mro__} for link in chain]
    connecting = any(own & _CONNECTING for own in names)
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    if numbers & _UNREACHABLE and not any("gaierror" in own for own in names):
        return "unreachable", not connecting
    if errno.ETIMEDOUT in numbers:
        # The kernel gave it up: nobody on the other side acknowledges anything.
        return "unreachable", not connecting
    for what, known in _NAMES.items():
        if any(own & known for own in names):
            return what, not connecting and what not in ("dns", "refused", "unsendable")
    return "unknown", not connecting


def chained(error: BaseException) -> Iterator[BaseException]:
    """Gives an error, what it was raised from, and the members of groups among them."""
    waiting, seen = [error], set[int]()
    while waiting:
        link = waiting.pop(0)
        if id(link) not in seen:
            seen.add(id(link))
            yield link
            # LiteLLM keeps some under a name of its own.
            causes = (link.__cause__, link.__context__, getattr(link, "original_exception", None))
            members = getattr(link, "exceptions", ())
            waiting += [cause for cause in (*causes, *members) if isinstance(cause, BaseException)]


def signs_of(error: BaseException) -> Record:
    """Writes down what is seen of an error of LiteLLM, for the other side to classify."""
    for link in chained(error):
        # LiteLLM changes statuses and loses headers on its way up; this is the answer as it came.
        response = getattr(link, "response", None)
        if type(link).__name__ == "HTTPStatusError" and response is not None:
            return answered(response.status_code, dict(response.headers), _body_of(response, error))
    what, sent = trouble_of(error)
    if what != "unknown":
        return {"what": what, "sent": sent, "detail": _system_detail(error)}
    for link in chained(error):
        # An error inside a good answer: the SDK keeps its body.
        body = getattr(link, "body", None)
        if isinstance(body, dict):
            return answered(None, {}, json.dumps({"error": body}))
    numbers = [getattr(link, "provider_status_code", None) for link in chained(error)]
    status = next((number for number in numbers if isinstance(number, int)), getattr(error, "status_code", None))
    if isinstance(status, str):
        # An error inside a good answer: LiteLLM takes its code for a status.
        return answered(None, {}, json.dumps({"error": {"code": status, "message": str(error)}}))
    headers = getattr(error, "litellm_response_headers", None)
    if not isinstance(status, int) or (status == LITELLM_OWN and headers is None):
        # LiteLLM's word for a stream that ends before its end, where nothing else went wrong.
        what = "cut" if type(error).__name__ == "MidStreamFallbackError" else "unknown"
        return {"what": what, "sent": True, "detail": "" if what == "cut" else type(error).__name__}
    return answered(status, dict(headers or {}), str(error))


def answered(status: int | None, headers: dict[str, str], body: str) -> Record:
    """Writes down an answer that is none; without a status it is an error inside a good one."""
    if status is not None and 300 <= status < 400:
        return {"what": "redirect", "status": status}
    kept = {name.lower(): value for name, value in headers.items() if any(part in name.lower() for part in HEADERS)}
    return {"what": "status", "status": status, "headers": kept, "body": body[:BODY_CHARS_MAX]}


def _body_of(response: Any, error: BaseException) -> str:
    try:
        return str(response.text)
    except Exception:  # noqa: BLE001 - A streamed body that was not read; the error says some of it.
        return str(error)


def _system_detail(error: BaseException) -> str:
    return next((str(link.strerror) for link in chained(error) if isinstance(link, OSError) and link.strerror), "")
