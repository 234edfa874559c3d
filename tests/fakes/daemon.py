"""A daemon of a few lines that misbehaves on demand: ``python daemon.py SOCKET DIRECTORY``.

It answers hello, initialize, tools/list and tools/call; `DIRECTORY/log` gets each line that it receives. What a call
does stands in its `arguments`: ``{"text", "delay_s", "once"}``. `once` names something to do instead of answering,
done only by the first daemon that gets to it (a file in DIRECTORY remembers): ``die``, ``half`` (half of the answer,
then death), ``after`` (the whole answer, then death), ``cut`` (the connection only); always done are ``twice`` (the
answer two times), ``garbage`` (lines that nobody asked for around it) and ``ask`` (a request to the client first; the
answer holds the client's).
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any


class Fake:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.incarnation = time.time_ns()

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            self.connection = connection
            asked: dict[str, dict[str, Any]] = {}
            for line in lines:
                self._log(line)
                message = json.loads(line)
                if "method" not in message:
                    call = asked.pop(str(message["id"]))
                    self._send(connection, self._answer(call, message["result"]["text"]))
                elif message["method"] == "tools/call" and message["params"]["arguments"].get("once") == "ask":
                    asked["0"] = message
                    self._send(connection, {"jsonrpc": "2.0", "id": 0, "method": "elicitation/create", "params": {}})
                elif "id" in message:
                    threading.Thread(target=self._request, args=(connection, message), daemon=True).start()

    def _request(self, connection: socket.socket, message: dict[str, Any]) -> None:
        method, params = message["method"], message.get("params", {})
        if method == "omnid/hello":
            welcome = {"version": "0", "pid": os.getpid(), "incarnation": self.incarnation, "message_bytes_max": 65536}
            self._send(connection, {"jsonrpc": "2.0", "id": message["id"], "result": welcome})
        elif method == "tools/call":
            self._call(connection, message, params["arguments"])
        else:
            result = {"method": method, "pid": os.getpid()}
            self._send(connection, {"jsonrpc": "2.0", "id": message["id"], "result": result})

    def _call(self, connection: socket.socket, message: dict[str, Any], arguments: dict[str, Any]) -> None:
        time.sleep(arguments.get("delay_s", 0))
        once = arguments.get("once")
        answer = self._answer(message, arguments.get("text", ""))
        if once in {"die", "half", "after", "cut"} and self._first(f"{once}-{message['id']}"):
            if once == "half":
                connection.sendall(json.dumps(answer).encode()[:-7])
            elif once == "after":
                self._send(connection, answer)
            if once == "cut":
                connection.shutdown(socket.SHUT_RDWR)
            else:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        if once == "garbage":
            connection.sendall(b'no json\n[1]\n{"jsonrpc":"2.0","id":"nobody","result":{}}\n')
        self._send(connection, answer)
        if once == "twice":
            self._send(connection, answer)

    def _answer(self, message: dict[str, Any], text: str) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": message["id"], "result": {"text": text, "pid": os.getpid()}}

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    def _first(self, name: str) -> bool:
        try:
            os.close(os.open(os.path.join(self.directory, name), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _log(self, line: bytes) -> None:
        with open(os.path.join(self.directory, "log"), "ab") as log:
            log.write(line)


def main(path: str, directory: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen()
        # One that a failed test has left behind ends by itself.
        listener.settimeout(60)
        with open(os.path.join(directory, "pid"), "a") as pids:
            pids.write(f"{os.getpid()}\n")
        fake = Fake(directory)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=fake.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
