"""An MCP server over stdio that misbehaves on demand; standard library only, so that it starts at once.

Usage: ``mcp_server.py '{"start_s": 0, "exit": null, "pages": 1, "era": "old", "ledger": "/path"}'``. Each tool is one
behaviour. What the client says beside calls (cancels, answers to requests) is appended to the ledger as JSON lines.
"""

import json
import os
import sys
import threading
import time
from typing import Any

OPTIONS: dict[str, Any] = {"start_s": 0, "exit": None, "pages": 1, "era": "old", "ledger": None, "mute": False}
OPTIONS |= {"discover_s": None, "odd_tools": False, "tasks": None}

SUM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PLAIN = ("echo", "fail", "notices", "hang", "deaf", "die", "garbage", "garbage_forever", "flood", "endless_line")
PLAIN += (
    "twice",
    "bad_result",
    "contents",
    "rpc_error",
    "refuse",
    "ask",
    "ask_forever",
    "huge",
    "binary",
    "slow",
    "nan",
    "confirm",
    "held",
)
ODD: list[Any] = [
    {"name": "no_schema"},
    {"name": "schema_of_text", "inputSchema": {"type": "string"}},
    {"name": "schema_is_text", "inputSchema": "object"},
    {"name": "odd_hints", "inputSchema": {"type": "object"}, "annotations": 7},
    {"inputSchema": {"type": "object"}},
    "nonsense",
]
OPTIONAL = {"taskSupport": "optional"}
SAFE = {
    "die_reading": {"readOnlyHint": True},
    "die_again": {"idempotentHint": True},
    "hang_safe": {"readOnlyHint": True},
}
LOCK = threading.Lock()


def send(message: dict[str, Any]) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


OUT = threading.local()
"""Where this thread's messages go, if not to the standard output: see `mcp_http_server`."""


def write(data: bytes) -> None:
    if hasattr(OUT, "write"):
        OUT.write(data)
        return
    with LOCK:
        while data:
            data = data[os.write(1, data) :]


def note(what: dict[str, Any]) -> None:
    if OPTIONS["ledger"]:
        with open(OPTIONS["ledger"], "a") as file:
            file.write(json.dumps(what) + "\n")


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}], **more}


def tools() -> list[dict[str, Any]]:
    anything = {"type": "object"}
    listed = [{"name": name, "inputSchema": anything} for name in PLAIN]
    listed += [{"name": name, "inputSchema": anything, "annotations": hints} for name, hints in SAFE.items()]
    return [
        *listed,
        {"name": "add", "inputSchema": SUM},
        {"name": "messages_send", "inputSchema": anything},
        {"name": "ask_first", "inputSchema": anything},
        {"name": "bad_schema", "inputSchema": {"type": "object", "allOf": 3}},
        {"name": "job", "inputSchema": anything, "execution": OPTIONAL},
        {"name": "job_safe", "inputSchema": anything, "annotations": {"readOnlyHint": True}, "execution": OPTIONAL},
    ]


def tools_page(cursor: str | None) -> dict[str, Any]:
    listed, pages = tools() + (ODD if OPTIONS["odd_tools"] else []), OPTIONS["pages"]
    size, page = -(-len(listed) // pages), int(cursor or 0)
    more = {"nextCursor": str(page + 1)} if page + 1 < pages else {}
    return {"tools": listed[page * size : (page + 1) * size], **more}


def call(request: Any, params: dict[str, Any]) -> None:
    """Does what the tool's name says; returns without an answer where that is the point."""
    name, given = params["name"], params.get("arguments") or {}
    token = params.get("_meta", {}).get("progressToken")
    note({"called": name, "arguments": given})
    if name == "ask_first":
        send({"id": request, "result": ask_first(params)})
        return
    if OPTIONS["tasks"] and name.startswith("job"):
        send({"id": request, "result": make_task(params)})
        return
    behaviour = globals().get(f"do_{name}", do_plain)
    result = behaviour(request, given, token) if behaviour is not do_plain else do_plain(name, given)
    if result is not None:
        if OPTIONS["era"] == "new":
            result["resultType"] = "complete"
        send({"id": request, "result": result})


def do_plain(name: str, given: dict[str, Any]) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {
        "echo": text(given.get("text", "")),
        "fail": text("goodbye", isError=True),
        "bad_result": {"content": 5},
        "huge": text("\0" * given.get("bytes", 0)),
        "binary": text("\0\\xff" + "x" * (given.get("bytes", 5) - 5)),
        "nan": text("", structuredContent={"value": float("nan")}),
    }
    return results[name]


def do_add(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    total = given["a"] + given["b"]
    return text(str(total), structuredContent={"sum": total})


def do_contents(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    return {
        "content": [
            {"type": "text", "text": "first"},
            {"type": "image", "mimeType": "image/png", "data": "aGVsbG8="},
            {"type": "resource_link", "uri": "file:///a", "name": "a"},
            {"type": "resource", "resource": {"uri": "file:///b", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "file:///c", "blob": "aGVsbG8="}},
        ]
    }


def do_notices(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    for step in range(1, 4):
        params = {"progressToken": token, "progress": step, "total": 3, "message": f"step {step}"}
        send({"method": "notifications/progress", "params": params})
    send({"method": "notifications/message", "params": {"level": "info", "data": "all is well"}})
    send({"method": "notifications/progress", "params": {"progressToken": "nobody's", "progress": 1}})
    return text("done")


def do_slow(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    time.sleep(given["s"])
    return text("hello")


def do_hang(request: Any, given: dict[str, Any], token: Any) -> None:
    tell(given)


do_hang_safe = do_hang


def do_deaf(request: Any, given: dict[str, Any], token: Any) -> None:
    """Holds the lock of the output for good, so that nothing is answered any more."""
    tell(given)
    LOCK.acquire()


def tell(given: dict[str, Any]) -> None:
    if "fifo" in given:
        with open(given["fifo"], "w") as file:
            file.write("here\n")


def do_die(request: Any, given: dict[str, Any], token: Any) -> None:
    os.write(2, b"out of cheese\n")
    os._exit(9)


do_die_reading = do_die_again = do_die


def do_garbage(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    for line in (b"Starting up...", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"id": {}}', b'{"method": 3}', b"{}"):
        write(line + b"\n")
    write(b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":"much"}}\n')
    return text("hello")


def do_garbage_forever(request: Any, given: dict[str, Any], token: Any) -> None:
    while True:
        write(b"nonsense\n")


def do_flood(request: Any, given: dict[str, Any], token: Any) -> None:
    while True:
        send({"method": "notifications/message", "params": {"level": "debug", "data": "x" * 100}})


def do_endless_line(request: Any, given: dict[str, Any], token: Any) -> None:
    while True:
        write(b"x" * 65536)


def do_twice(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    for other in (10**6, "nobody", None):
        send({"id": other, "result": text("for somebody else")})
    send({"id": request, "result": text("first")})
    return text("second")


def do_rpc_error(request: Any, given: dict[str, Any], token: Any) -> None:
    send({"id": request, "error": {"code": -32603, "message": "it is raining"}})


def do_messages_send(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any] | None:
    """OpenClaw's; a session that it doesn't know is refused, and one named after a fault has it."""
    if given["session_key"] == "unknown":
        return do_refuse(request, given, token)
    return text("no gateway", isError=True) if given["session_key"] == "down" else text("sent")


def do_refuse(request: Any, given: dict[str, Any], token: Any) -> None:
    send({"id": request, "error": {"code": -32602, "message": "a must be even"}})


def do_ask(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    for number, method in enumerate(
        ("ping", "sampling/createMessage", "roots/list", "elicitation/create", "odd/thing")
    ):
        params = {"messages": [], "maxTokens": 1} if method.startswith("sampling") else {}
        if method.startswith("elicitation"):
            params = {"message": "who?", "requestedSchema": {"type": "object", "properties": {}}}
        ANSWERS[f"q{number}"] = threading.Event()
        send({"id": f"q{number}", "method": method, "params": params})
        ANSWERS[f"q{number}"].wait(5)
    return text("asked")


TOGETHER: dict[str, threading.Barrier] = {}
"""Where calls wait for each other before they ask."""


def do_confirm(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    """Asks in the middle of the call, as servers of the older era do: the question names no call."""
    if "together" in given:
        TOGETHER.setdefault("barrier", threading.Barrier(given["together"])).wait()
    id = f"confirm {request}"
    ANSWERS[id] = threading.Event()
    send({"id": id, "method": "elicitation/create", "params": {"message": given["what"], "requestedSchema": WHO}})
    tell(given)
    ANSWERS[id].wait()
    if ANSWERED[id] is None:
        return text("it was not asked", isError=True)
    return text(json.dumps(ANSWERED[id]))


def do_held(request: Any, given: dict[str, Any], token: Any) -> dict[str, Any]:
    """Waits until somebody writes to a FIFO."""
    tell(given)
    with open(given["until"]) as file:
        return text(file.read())


WHO = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
QUESTION = {"method": "elicitation/create", "params": {"mode": "form", "message": "who?", "requestedSchema": WHO}}


def ask_first(params: dict[str, Any]) -> dict[str, Any]:
    """Asks twice the same, and is done when it was answered twice."""
    rounds = int(params.get("requestState") or 0)
    if rounds < 2:
        return {"resultType": "input_required", "inputRequests": {"who": QUESTION}, "requestState": str(rounds + 1)}
    return text(json.dumps(params["inputResponses"]), resultType="complete")


def ask_for_result(request: Any, task: dict[str, Any]) -> None:
    """Asks while the result is waited for, as servers do before 2026-07-28."""
    id = f"of-{request}"
    ANSWERS[id] = threading.Event()
    meta = {"io.modelcontextprotocol/related-task": {"taskId": task["taskId"]}}
    send({"id": id, **QUESTION, "params": {**QUESTION["params"], "_meta": meta}})
    if ANSWERS[id].wait(30):
        keep_task({**task, "status": "completed"})
        send({"id": request, "result": text(json.dumps({"who": ANSWERED[id]}))})


def make_task(params: dict[str, Any]) -> dict[str, Any]:
    """Makes a task, which is a file that the test goes on with."""
    given = params["arguments"]
    task = {"taskId": f"task-{time.time_ns()}", "status": "working", "createdAt": "2026-01-01T00:00:00Z"}
    keep_task({**task, "lastUpdatedAt": task["createdAt"], **given.get("task", {})})
    note({"made": task["taskId"], "asked": params.get("task")})
    shown = show_task(task["taskId"])
    if "fifo" in given:
        with open(given["fifo"], "w") as file:
            file.write(task["taskId"] + "\n")
    return {"resultType": "task", **shown} if OPTIONS["era"] == "new" else {"task": shown}


def keep_task(task: dict[str, Any]) -> None:
    path = os.path.join(OPTIONS["tasks"], task["taskId"])
    with open(path + ".new", "w") as file:
        json.dump(task, file)
    os.rename(path + ".new", path)


def read_task(id: str) -> dict[str, Any]:
    with open(os.path.join(OPTIONS["tasks"], id)) as file:
        return json.load(file)


def show_task(id: str) -> dict[str, Any]:
    task = read_task(id)
    if OPTIONS["era"] == "new":
        return {"ttlMs": None, "pollIntervalMs": 10, **task}
    return {"ttl": None, "pollInterval": 10, **{name: task[name] for name in task if name not in ("result", "error")}}


def of_task(request: Any, method: str, params: dict[str, Any]) -> None:
    """Answers a method of tasks."""
    new = OPTIONS["era"] == "new"
    note({"of_task": method, "params": {name: params[name] for name in params if name != "_meta"}})
    try:
        task = read_task(params["taskId"])
    except FileNotFoundError:
        send({"id": request, "error": {"code": -32602, "message": "there is no such task"}})
        return
    if method == "tasks/cancel" and task.get("obeys", True) and task["status"] in ("working", "input_required"):
        keep_task({**task, "status": "cancelled"})
    if method == "tasks/update":
        keep_task({**task, "status": "completed", "result": text(json.dumps(params["inputResponses"]))})
    if method == "tasks/result" and task["status"] == "input_required":
        ask_for_result(request, task)
    elif method == "tasks/result" and "error" in task:
        send({"id": request, "error": task["error"]})
    elif method == "tasks/result":
        send({"id": request, "result": task["result"]})
    elif new and method != "tasks/get":
        send({"id": request, "result": {"resultType": "complete"}})
    else:
        send({"id": request, "result": {"resultType": "complete", **show_task(task["taskId"])}})


ANSWERS: dict[Any, threading.Event] = {}
ANSWERED: dict[Any, Any] = {}


def do_ask_forever(request: Any, given: dict[str, Any], token: Any) -> None:
    """Asks without ever reading the answers."""
    READING.clear()
    number = 0
    while True:
        number += 1
        send({"id": f"x{number}", "method": "ping", "params": {"_meta": {"padding": "x" * 100}}})


READING = threading.Event()
READING.set()


def spawn(work: Any, *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def answer(message: dict[str, Any], run: Any = spawn) -> None:
    method, request = message.get("method"), message.get("id")
    params: dict[str, Any] = message.get("params") or {}
    if method is None:
        note({"answered": request, "error": message.get("error", {}).get("code")})
        if message.get("result"):
            note({"result": message["result"]})
        if request in ANSWERS:
            ANSWERED[request] = message.get("result")
            ANSWERS[request].set()
    elif request is None:
        note({"notified": method, "params": params})
    elif method == "initialize":
        greet(request, params)
    elif method == "server/discover":
        discover(message, request)
    elif method == "tools/list":
        era = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if OPTIONS["era"] == "new" else {}
        send({"id": request, "result": {**tools_page(params.get("cursor")), **era}})
    elif method == "tools/call":
        run(call, request, params)
    elif OPTIONS["tasks"] and method.startswith("tasks/"):
        run(of_task, request, method, params)
    else:
        send({"id": request, "error": {"code": -32601, "message": f"no {method}"}})


def greet(request: Any, params: dict[str, Any]) -> None:
    if OPTIONS["era"] == "new":
        data = {"supported": ["2026-07-28"], "requested": params["protocolVersion"]}
        send({"id": request, "error": {"code": -32022, "message": "unsupported", "data": data}})
        return
    note({"initialized": params["protocolVersion"]})
    note({"declared": sorted(params["capabilities"])})
    capabilities: dict[str, Any] = {"tools": {}, "logging": {}}
    if OPTIONS["tasks"]:
        capabilities["tasks"] = {"cancel": {}, "requests": {"tools": {"call": {}}}}
    info = {"name": "fake", "version": "1"}
    result = {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": info}
    send({"id": request, "result": result})


def discover(message: dict[str, Any], request: Any) -> None:
    if OPTIONS["discover_s"] is not None:
        # Not at all, or late.
        note({"ignored": message["method"]})
        if OPTIONS["discover_s"]:
            time.sleep(OPTIONS["discover_s"])
            OPTIONS["discover_s"] = None
            discover(message, request)
    elif OPTIONS["era"] == "new":
        result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "resultType": "complete"}
        send({"id": request, "result": {**result, "ttlMs": 0, "cacheScope": "private"}})
    else:
        send({"id": request, "error": {"code": -32601, "message": "no server/discover"}})


def main() -> None:
    OPTIONS.update(json.loads(sys.argv[1]))
    note({"started": os.getpid()})
    if OPTIONS["exit"] is not None:
        os.write(2, b"no license was found\n")
        sys.exit(OPTIONS["exit"])
    time.sleep(OPTIONS["start_s"])
    for line in sys.stdin:
        READING.wait()
        if not OPTIONS["mute"]:
            answer(json.loads(line))


if __name__ == "__main__":
    main()
