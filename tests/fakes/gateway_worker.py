"""A stand-in for the gateway's worker, without LiteLLM: the same socket, and behaviour by the words it is given.

Run as ``gateway_worker.py [dies|silent|slow|hangs|large] DIRECTORY SOCKET``; standard library only. DIRECTORY gets a
line in ``starts`` for each start, and holds the FIFOs ``go`` and ``answer`` that a slow start and a long call await.
"""

import json
import os
import socketserver
import sys
import threading
from typing import Any

BEHAVIOUR, (DIRECTORY, PATH) = sys.argv[1:-2], sys.argv[-2:]
LARGE_BYTES = 10**9


class Handler(socketserver.StreamRequestHandler):
    running = 0
    number = 0

    def handle(self) -> None:
        ask = json.loads(self.rfile.readline())
        first = Handler.number == 1
        memory_bytes = LARGE_BYTES if "large" in BEHAVIOUR and first else 1000
        if ask["op"] == "probe":
            self.say({"pid": os.getpid(), "memory_bytes": memory_bytes, "running": Handler.running, "calls": 0})
            return
        Handler.running += 1
        if "hangs" in BEHAVIOUR and first:
            threading.Event().wait()
        if ask["model"].endswith("/long"):
            until(f"{DIRECTORY}/answer")
        Handler.running -= 1
        self.say({"text": "hello"})
        self.say({"done": {"text": None, "finish": "stop", "model": "m", "usage": None, "memory_bytes": memory_bytes}})

    def say(self, message: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(message).encode() + b"\n")


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def until(fifo: str) -> None:
    with open(fifo) as file:
        file.read()


def end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


with open(f"{DIRECTORY}/starts", "a+") as starts:
    starts.write("start\n")
    starts.seek(0)
    Handler.number = len(starts.readlines())
if "dies" in BEHAVIOUR:
    # The key of the contract suite, as a library might print it.
    sys.stderr.write("no litellm here for sk-planted-0123456789abcdef\n")
    sys.exit(3)
threading.Thread(target=end_with_input, daemon=True).start()
if "silent" in BEHAVIOUR:
    threading.Event().wait()
if "slow" in BEHAVIOUR:
    until(f"{DIRECTORY}/go")
os.umask(0o177)
with Server(PATH, Handler) as server:
    print("ready", flush=True)
    server.serve_forever()
