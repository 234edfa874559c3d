"""Claude Code: ``claude -p``. Source: its command line reference, and 2.1 run against an endpoint of our own."""

from omnid.executor.profiles.profile import CONTINUE, Answer, Default, Profile, Sessions, Syntax, Texts

TEXTS = Texts(
    limit=(
        r"you.ve (?:hit|reached) your [\w\s-]*limit",
        r"reached your specified[\w\s-]*usage limits",
        r"(?:session|weekly|5-hour|monthly|opus|sonnet|usage|fast|spend|credit) limit reached",
        r"out of (?:extra )?usage",
        r"rate_limit_error",
        r"request rejected \(429\)",
        r"api error: 429\b",
        r"exceed your (?:account|organization)'s rate limit",
    ),
    overload=(r"\b529\b.{0,80}overloaded", r"overloaded_error", r"repeated 529", r"temporarily limiting requests"),
    login=(
        r"not logged in",
        r"please run /login",
        r"invalid api key",
        r"oauth token (?:has expired|is expired|revoked)",
        r"authentication_error",
        r"credit balance (?:is )?too low",
    ),
    alone=(
        r"claude (?:ai )?usage limit reached.*",
        r"you.ve hit your [\w\s-]*limit\W+resets .*",
        r"\W*[\w\s-]*limit reached\W+resets .*",
    ),
)

ANSWER = Answer(
    match={"type": "result"},
    take={
        "output": "result",
        "error": "errors.0",
        "is_error": "is_error",
        "cost_usd": "total_cost_usd",
        "session": "session_id",
        "denied": "permission_denials.*.tool_name",
    },
)

PROFILE = Profile(
    name="claude-code",
    program="claude",
    syntax=Syntax(
        needs=frozenset({"-p", "--print"}),
        one=frozenset(
            {
                *("--agent", "--agents", "--append-system-prompt", "--append-system-prompt-file", "--debug-file"),
                *("--effort", "--fallback-model", "--input-format", "--json-schema", "--max-budget-usd", "--max-turns"),
                *("--model", "--name", "-n", "--output-format", "--permission-mode", "--permission-prompt-tool"),
                *("--plugin-dir", "--plugin-url", "--session-id", "--setting-sources", "--settings"),
                *("--system-prompt", "--system-prompt-file", "--remote-control-session-name-prefix"),
            }
        ),
        many=frozenset(
            {
                *("--add-dir", "--allowedTools", "--allowed-tools", "--betas", "--disallowedTools"),
                *("--disallowed-tools", "--file", "--mcp-config", "--tools"),
            }
        ),
        maybe=frozenset(
            {"-d", "--debug", "-r", "--resume", "-w", "--worktree", "--from-pr", "--remote-control"},
        ),
    ),
    begin=("-p", "{flags}", "--session-id", "{session}", "--", "{prompt}"),
    resume=("-p", "{flags}", "--resume", "{session}", "--", CONTINUE),
    sessions=Sessions(
        by="us",
        given=frozenset({"--session-id"}),
        kept=frozenset(
            {"-c", "--continue", "-r", "--resume", "--fork-session", "--from-pr", "--no-session-persistence", "--bg"}
            | {"--background", "--input-format"}
        ),
        taken=r"session id \S+ is already in use",
        missing=r"no conversation found with session id",
    ),
    texts=TEXTS,
    answers=(ANSWER,),
    defaults=(Default(names=("--output-format",), words=("--output-format", "json")),),
    permission=Default(
        names=("--permission-mode", "--dangerously-skip-permissions"), words=("--permission-mode", "acceptEdits")
    ),
    tools=Default(
        names=("--allowedTools", "--allowed-tools", "--dangerously-skip-permissions"),
        words=(
            "--allowedTools",
            "Read,Glob,Grep,Edit,Write,NotebookEdit,Bash(git status *),Bash(git diff *),Bash(git log *)",
        ),
    ),
    cost="--max-budget-usd",
    structured={"--output-format": frozenset({"json", "stream-json"})},
)
