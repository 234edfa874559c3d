"""OpenClaw: ``openclaw agent --json``. Source: docs.openclaw.ai/cli/agent. A session goes on under the id it has."""

from omnid.executor.profiles.profile import CONTINUE, Answer, Default, Profile, Sessions, Syntax, Texts

PROFILE = Profile(
    name="openclaw",
    program="openclaw",
    syntax=Syntax(
        verbs=("agent",),
        needs=frozenset({"-m", "--message"}),
        prompt_flags=frozenset({"-m", "--message"}),
        one=frozenset(
            {
                *("-t", "--to", "--session-id", "--session-key", "--agent", "--model", "--thinking", "--verbose"),
                *("--channel", "--reply-to", "--reply-channel", "--reply-account", "--timeout", "--message-file"),
            }
        ),
    ),
    begin=("agent", "{flags}", "--session-id", "{session}", "--message", "{prompt}"),
    resume=("agent", "{flags}", "--session-id", "{session}", "--message", CONTINUE),
    sessions=Sessions(
        by="us",
        given=frozenset({"--session-id"}),
        kept=frozenset({"-t", "--to", "--session-key", "--message-file"}),
    ),
    texts=Texts(
        limit=(
            r"api rate limit reached",
            r"rate[_ ]limit(?:ed|_error)?\b",
            r"429 too many requests",
            r"quota exceeded",
            r"resource_exhausted",
            r"you.ve hit your [\w\s-]*limit",
            r"usage limit",
        ),
        overload=(r"overloaded", r"temporarily overloaded"),
        alone=(r"\W*api rate limit reached\W+please try again later\W*",),
        login=(
            r"no api key found",
            r"authentication_error",
            r"invalid api key",
            r"oauth token (?:refresh failed|expired)",
        ),
    ),
    answers=(
        Answer(
            take={
                "output": "result.payloads.*.text",
                "cost_usd": "result.meta.agentMeta.usage.cost.total",
                "session": "result.meta.agentMeta.sessionId",
            },
        ),
        Answer(take={"output": "payloads.*.text", "cost_usd": "meta.agentMeta.usage.cost.total"}),
        Answer(match={"status": "error"}, take={"error": "summary"}),
        Answer(take={"error": "error.message"}),
        Answer(take={"error": "meta.error.message"}),
        Answer(take={"error": "result.meta.error.message"}),
    ),
    defaults=(Default(names=("--json",), words=("--json",)),),
)
