"""An agent's program that needs no model: ``python agent.py PROGRAM ARGUMENTS...`` prints what the real one prints.

The first prompt says what the turns of its session do, one word each (`TURNS`); the first word that is not one of them
ends the list. Sessions lie in ``$AGENT_HOME/sessions``; ``$AGENT_HOME/calls`` gets the arguments of each start.
What it prints was taken from Claude Code 2.1, Codex 0.169 and Gemini CLI 0.61, and for OpenClaw from its documentation.
"""

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import NoReturn

HOME = Path(os.environ["AGENT_HOME"])
SESSIONS = HOME / "sessions"
TURNS = (
    "success",
    "error",
    "denied",
    "limit",
    "overload",
    "login",
    "half",
    "huge",
    "nothing",
    "hang",
    "crash",
    "silent",
)
COST_USD = 0.25
RESET = os.environ.get("AGENT_RESET", "resets 8pm (America/New_York)")


def main(program: str, words: list[str]) -> None:
    SESSIONS.mkdir(parents=True, exist_ok=True)
    with (HOME / "calls").open("a") as calls:
        calls.write(json.dumps([program, *words]) + "\n")
    AGENTS[program](words)


def value(words: list[str], *flags: str) -> str | None:
    for at, word in enumerate(words):
        if word in flags:
            return words[at + 1]
        for flag in flags:
            if word.startswith(f"{flag}="):
                return word.partition("=")[2]
    return None


def turn(session: str, prompt: str) -> str:
    """Adds a prompt to the session and gives what its turn does."""
    path = SESSIONS / session
    said = [*(path.read_text().splitlines() if path.exists() else []), prompt]
    path.write_text("\n".join(said) + "\n")
    turns = said[0].split()
    return turns[len(said) - 1] if len(said) <= len(turns) and turns[len(said) - 1] in TURNS else "success"


def end(code: int) -> NoReturn:
    sys.stdout.flush()
    os._exit(code)


def complain(text: str, code: int = 1) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    end(code)


def common(what: str) -> None:
    """Does what looks the same in all of them."""
    if what == "hang":
        with open(os.environ["AGENT_FIFO"], "w") as fifo:
            fifo.write(f"{os.getpid()}\n")
        time.sleep(600)
    elif what == "half":
        print('{"type": "result", "result": "All d', end="")
        end(0)
    elif what == "nothing":
        end(0)
    elif what == "crash":
        complain("TypeError: Cannot read properties of undefined", 134)


def claude(words: list[str]) -> None:
    resumed, session = value(words, "--resume"), value(words, "--session-id") or str(uuid.uuid4())
    if resumed is not None and not (SESSIONS / resumed).exists():
        complain(f"No conversation found with session ID: {resumed}")
    if resumed is None and (SESSIONS / session).exists():
        complain(f"Error: Session ID {session} is already in use.")
    session = resumed or session
    what = turn(session, words[-1])
    common(what)
    answer = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 2, "result": "All done."}
    answer |= {"session_id": session, "total_cost_usd": COST_USD, "permission_denials": []}
    texts = {
        "error": "API Error: 500 Internal server error",
        "limit": f"You've hit your session limit · {RESET}",
        "overload": "API Error: 529 Overloaded. This is a server-side issue, usually temporary.",
        "login": "Not logged in · Please run /login",
    }
    if what in texts:
        answer |= {"is_error": True, "result": texts[what], "total_cost_usd": 0}
    if what == "denied":
        denied = {"tool_name": "Bash", "tool_use_id": "toolu_1", "tool_input": {"command": "make"}}
        answer["permission_denials"] = [denied, denied]
    if what == "huge":
        answer["result"] = "x" * 3_000_000
    if value(words, "--output-format") == "text":
        print(answer["result"])
    elif value(words, "--output-format") == "stream-json":
        print(json.dumps({"type": "system", "subtype": "init", "session_id": session}))
        print(json.dumps({"type": "assistant", "message": {"content": [{"type": "text", "text": "All done."}]}}))
        print(json.dumps(answer))
    else:
        print(json.dumps(answer))
    end(1 if answer["is_error"] else 0)


def codex(words: list[str]) -> None:
    resumed = words[words.index("resume") + 1] if "resume" in words else None
    if resumed is not None and not (SESSIONS / resumed).exists():
        complain(f"Error: thread/resume: thread/resume failed: no rollout found for thread id {resumed} (code -32600)")
    session = resumed or str(uuid.uuid4())
    what = turn(session, words[-1])
    if what == "crash":
        common(what)
    events = [{"type": "thread.started", "thread_id": session}, {"type": "turn.started"}]
    for event in events if what not in ("nothing", "half") else []:
        print(json.dumps(event), flush=True)
    common(what)
    texts = {
        "error": "stream disconnected before completion",
        "limit": "You've hit your usage limit. Try again in 3 hours 10 minutes.",
        "overload": "Selected model is at capacity. Please try a different model.",
        "login": "unexpected status 401 Unauthorized: Missing bearer, url: https://api.openai.com/v1/responses",
    }
    if what in texts:
        print(json.dumps({"type": "error", "message": texts[what]}))
        print(json.dumps({"type": "turn.failed", "error": {"message": texts[what]}}))
        end(1)
    text = "x" * 3_000_000 if what == "huge" else "All done."
    print(json.dumps({"type": "item.completed", "item": {"id": "0", "type": "reasoning", "text": "Hm."}}))
    print(json.dumps({"type": "item.completed", "item": {"id": "1", "type": "agent_message", "text": text}}))
    print(json.dumps({"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}))
    end(0)


def gemini(words: list[str]) -> None:
    resumed, session = value(words, "--resume"), value(words, "--session-id") or str(uuid.uuid4())
    if resumed is not None and not (SESSIONS / resumed).exists():
        complain(f'Error resuming session: Invalid session identifier "{resumed}".', 42)
    if resumed is None and (SESSIONS / session).exists():
        complain(f'Session "{session}" already exists. Use --resume to resume it, or provide a different ID.', 42)
    session = resumed or session
    what = turn(session, value(words, "-p", "--prompt") or "")
    common(what)
    texts = {
        "error": "Unexpected response",
        "limit": "You have exhausted your daily quota on this model. Please retry in 3h10m.",
        "overload": "The model is overloaded. Please try again later.",
        "login": "Please set an Auth method in your settings.json or specify GEMINI_API_KEY",
    }
    if what in texts:
        error = {"type": "Error", "message": texts[what], "code": 1}
        complain(json.dumps({"session_id": session, "error": error}, indent=2))
    text = "x" * 3_000_000 if what == "huge" else "All done."
    print(json.dumps({"session_id": session, "response": text, "stats": {}}, indent=2))
    end(0)


def openclaw(words: list[str]) -> None:
    session = value(words, "--session-id") or "main"
    what = turn(session, value(words, "--message", "-m") or "")
    common(what)
    if what == "error":
        print(json.dumps({"runId": "r", "status": "error", "summary": "the run was aborted"}, indent=2))
        end(0)
    if what == "login":
        complain('Error: No API key found for provider "anthropic".')
    texts = {
        "limit": "⚠️ API rate limit reached. Please try again later.",
        "huge": "x" * 3_000_000,
    }
    if what == "overload":
        complain("Error: The AI service is temporarily overloaded. Please try again in a moment.")
    meta = {"durationMs": 5, "agentMeta": {"sessionId": session, "usage": {"input": 1, "cost": {"total": COST_USD}}}}
    payloads = [{"text": texts.get(what, "All done."), "mediaUrl": None}]
    answer = {"runId": "r", "status": "ok", "summary": "completed", "result": {"payloads": payloads, "meta": meta}}
    print("[plugins] loaded")
    print(json.dumps(answer, indent=2))
    end(0)


AGENTS = {"claude": claude, "codex": codex, "gemini": gemini, "openclaw": openclaw}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
