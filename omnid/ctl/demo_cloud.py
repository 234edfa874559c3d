"""A provider of models on loopback, in the demo of an outage: answers, limits and waits as a script says, and counts.

Run by its path, with ``PLACE PORT``; it prints ``ready`` and serves the OpenAI wire while its standard input is open.
What it is asked, and what it does, it writes into a ledger, which outlives it.
"""

import json
import os
import select
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

SCRIPT = "cloud.json"
"""What it does: `held` (prompts whose first call is never answered) and `limits` (how many calls a free channel takes,
by the first part of its path, before it says that it is limited)."""
LEDGER = "ledger"
"""A line for each call: what became of it, the channel, and the prompt."""
BEGUN, ANSWERED, LIMITED = "begun", "answered", "limited"
LOCAL = "local"
"""The first part of the path of what stands in for the local model: it costs nothing and is not counted."""
COST_USD = 0.02
LIMIT_S = 600
HOST = "127.0.0.1"

_HELD_S_MAX = 120.0
_BODY_BYTES_MAX = 1 << 20


class Cloud(ThreadingHTTPServer):
    """The server, with what it shares among its calls."""

    daemon_threads = True
    allow_reuse_port = True
    """Whoever has started this holds the port while nobody listens there."""

    def __init__(self, place: str, port: int) -> None:
        self.place = place
        with open(os.path.join(place, SCRIPT), encoding="utf-8") as file:
            self.script: dict[str, Any] = json.load(file)
        self.turn = threading.Lock()
        super().__init__((HOST, port), Call)

    def server_bind(self) -> None:
        """See TCPServer; that of HTTPServer would ask the network for a name."""
        TCPServer.server_bind(self)

    def begin(self, channel: str, prompt: str) -> bool:
        """Takes a call down; False where the channel is limited."""
        limit = self.script["limits"].get(channel)
        with self.turn:
            limited = limit is not None and self.count(BEGUN, channel) >= limit
            self.note(LIMITED if limited else BEGUN, channel, prompt)
        return not limited

    def note(self, what: str, channel: str, prompt: str) -> None:
        """Adds a line to the ledger."""
        with open(os.path.join(self.place, LEDGER), "a", encoding="utf-8") as file:
            file.write(f"{what} {channel} {prompt}\n")

    def count(self, *begin: str) -> int:
        """Counts the lines of the ledger that begin with these words."""
        return sum(line.startswith(" ".join(begin)) for line in ledger(self.place))


class Call(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    @property
    def _cloud(self) -> Cloud:
        return cast("Cloud", self.server)

    def do_GET(self) -> None:
        """Answers a probe."""
        self._send({})

    def do_POST(self) -> None:
        """Answers a prompt, or does what the script says instead."""
        body = json.loads(self.rfile.read(min(int(self.headers["content-length"]), _BODY_BYTES_MAX)))
        prompt, channel = str(body["messages"][-1]["content"]), self.path.split("/")[1]
        if channel == LOCAL:
            self._answer(body, f"{prompt}: answered by a stand-in on this machine.", 0.0)
            return
        cloud = self._cloud
        if not cloud.begin(channel, prompt):
            error = {"message": "this key has had enough for now", "code": "rate_limit_exceeded"}
            self._send({"error": error}, 429, {"retry-after": str(LIMIT_S)})
        elif prompt in cloud.script["held"] and cloud.count(BEGUN, channel, prompt) == 1:
            # The end of its input: who asked has gone.
            select.select([self.connection], [], [], _HELD_S_MAX)
            self.close_connection = True
        else:
            # Before it leaves: an answer that nobody has read was billed too.
            cloud.note(ANSWERED, channel, prompt)
            free = channel in cloud.script["limits"]
            self._answer(body, f"{prompt}: answered by a scripted cloud.", 0.0 if free else COST_USD)

    def log_message(self, format: str, *args: Any) -> None:
        """See BaseHTTPRequestHandler; the ledger says enough."""

    def _answer(self, body: dict[str, Any], text: str, cost_usd: float) -> None:
        tokens = max(1, len(text) // 4)
        usage = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens, "cost": cost_usd}
        start = {"id": "demo", "created": int(time.time()), "model": body.get("model", "demo")}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self._send({**start, "object": "chat.completion", "choices": choices, "usage": usage})
            return
        start["object"] = "chat.completion.chunk"
        first = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        events = [
            json.dumps({**start, "choices": [first]}),
            json.dumps({**start, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
            json.dumps({**start, "choices": [], "usage": usage}),
            "[DONE]",
        ]
        data = "".join(f"data: {event}\n\n" for event in events).encode()
        self._send_bytes(data, 200, {"content-type": "text/event-stream"})

    def _send(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(json.dumps(body).encode(), status, {"content-type": "application/json", **(headers or {})})

    def _send_bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            # Who asked has gone meanwhile.
            self.close_connection = True


def ledger(place: str) -> list[str]:
    """Reads the ledger: what became of each call, in order."""
    try:
        with open(os.path.join(place, LEDGER), encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    with Cloud(sys.argv[1], int(sys.argv[2])) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        print("ready", flush=True)
        # It ends with whoever has started it.
        sys.stdin.buffer.read()
