"""Codex: ``codex exec --json``. Source: its help, and 0.169 run against an endpoint of our own."""

from omnid.executor.profiles.profile import CONTINUE, Answer, Default, Profile, Sessions, Syntax, Texts

PROFILE = Profile(
    name="codex",
    program="codex",
    syntax=Syntax(
        verbs=("exec", "e"),
        one=frozenset(
            {
                *("-c", "--config", "--enable", "--disable", "-m", "--model", "--local-provider", "-p", "--profile"),
                *("-s", "--sandbox", "-C", "--cd", "--add-dir", "--thread-source", "--output-schema", "--color", "-o"),
                *("--output-last-message", "--cyber-access-program", "-a", "--ask-for-approval"),
            }
        ),
        many=frozenset({"-i", "--image"}),
    ),
    begin=("exec", "{flags}", "--", "{prompt}"),
    resume=("exec", "{flags}", "resume", "{session}", CONTINUE),
    sessions=Sessions(
        by="agent", kept=frozenset({"--ephemeral"}), missing=r"no rollout found|thread/resume failed|thread not found"
    ),
    texts=Texts(
        limit=(
            r"you.ve hit your usage limit",
            r"usage limit has been reached",
            r"usage_limit_reached",
            r"rate limit reached",
            r"429 too many requests",
            r"quota exceeded",
            r"exceeded your current quota",
        ),
        overload=(r"model is at capacity", r"server_is_overloaded", r"(?:503|529)\b.{0,80}overloaded"),
        login=(r"401 unauthorized", r"not logged in", r"codex login", r"refresh token (?:was|has|is)"),
    ),
    answers=(
        Answer(match={"type": "thread.started"}, take={"session": "thread_id"}),
        Answer(match={"type": "item.completed", "item.type": "agent_message"}, take={"output": "item.text"}),
        Answer(match={"type": "turn.completed"}, take={"ended": "type"}),
        Answer(match={"type": "turn.failed"}, take={"error": "error.message"}),
    ),
    defaults=(Default(names=("--json",), words=("--json",)),),
    permission=Default(
        names=("-s", "--sandbox", "--approve-for-me", "--dangerously-bypass-approvals-and-sandbox"),
        words=("--sandbox", "workspace-write"),
    ),
)
