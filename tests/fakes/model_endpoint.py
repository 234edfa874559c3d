"""A model on loopback that says what a test tells it to: ``/v1/messages`` as Anthropic streams it."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

CONTINUED = ("continue", "Continue from where you left off.")
"""What a session is told that is gone on with: by omnid, and by Claude Code where a turn was cut off."""


class Asked(NamedTuple):
    """One request of an agent."""

    texts: list[str]
    """What people (and omnid) have said in its session, in order."""
    results: int
    """How many tools have given a result."""
    session: str
    told: list[str]
    """What these tools gave, as text."""

    @property
    def opens(self) -> bool:
        """Whether it is a first prompt and nothing else."""
        return self.results == 0 and not any(text.strip() in CONTINUED for text in self.texts)


Reply = Callable[[Asked], dict[str, Any] | int]
"""Gives a block of content (text or tool_use), or the status of an error."""


class ModelEndpoint:
    """Serves on a free port until it is closed; `reply` decides, `asked` remembers."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[Asked] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
                endpoint._answer(self, body)

            def do_HEAD(self) -> None:
                endpoint._send(self, 200, b"")

            def do_GET(self) -> None:
                self.do_HEAD()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def openings(self) -> list[str]:
        """Gives the first prompts that came, in order."""
        return [asked.texts[-1].strip() for asked in self.asked if asked.opens]

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if not body.get("tools"):  # It counts tokens, or asks for a title.
            block: dict[str, Any] | int = {"type": "text", "text": "Fine."}
        else:
            asked = _asked(body)
            self.asked.append(asked)
            block = self.reply(asked)
        if isinstance(block, int):
            self._refuse(handler, block)
        elif body.get("stream"):
            self._send(handler, 200, _stream(body, block), "text/event-stream")
        else:
            stop = "tool_use" if block["type"] == "tool_use" else "end_turn"
            whole = {**_message(body), "content": [block], "stop_reason": stop}
            self._send(handler, 200, json.dumps(whole).encode())

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        """Refuses as the provider does a subscription whose five hours are used up."""
        error = {"type": "rate_limit_error", "message": "This request would exceed your account's rate limit."}
        reset = str(int(time.time()) + 1)
        headers = {
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-reset": reset,
            "anthropic-ratelimit-unified-representative-claim": "five_hour",
            "anthropic-ratelimit-unified-5h-status": "rejected",
            "anthropic-ratelimit-unified-5h-reset": reset,
            "x-should-retry": "false",
        }
        self._send(handler, status, json.dumps({"type": "error", "error": error}).encode(), headers=headers)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        try:
            handler.send_response(status)
            for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
                handler.send_header(name, value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(body)
        except OSError:
            return  # Who asked was killed meanwhile.


def _asked(body: dict[str, Any]) -> Asked:
    texts: list[str] = []
    told: list[str] = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        told += [json.dumps(part.get("content")) for part in parts if part["type"] == "tool_result"]
        if message["role"] == "user":
            texts += [
                part["text"] for part in parts if part["type"] == "text" and "<system-reminder>" not in part["text"]
            ]
    return Asked(texts, len(told), body.get("metadata", {}).get("user_id", ""), told)


def _message(body: dict[str, Any]) -> dict[str, Any]:
    usage = {"input_tokens": 100, "output_tokens": 1}
    start = {"id": f"msg_{time.time_ns()}", "type": "message", "role": "assistant", "model": body["model"]}
    return {**start, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}


def _stream(body: dict[str, Any], block: dict[str, Any]) -> bytes:
    is_tool = block["type"] == "tool_use"
    start = {**block, "input": {}} if is_tool else {"type": "text", "text": ""}
    text = {"type": "text_delta", "text": block.get("text")}
    delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])} if is_tool else text
    stop = {"stop_reason": "tool_use" if is_tool else "end_turn", "stop_sequence": None}
    events = [
        {"type": "message_start", "message": _message(body)},
        {"type": "content_block_start", "index": 0, "content_block": start},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
