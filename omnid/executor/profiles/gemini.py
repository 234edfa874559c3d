"""Gemini CLI: ``gemini -p``. Source: its help and sources, 0.61."""

from omnid.executor.profiles.profile import CONTINUE, Answer, Default, Profile, Sessions, Syntax, Texts

PROFILE = Profile(
    name="gemini",
    program="gemini",
    syntax=Syntax(
        needs=frozenset({"-p", "--prompt"}),
        prompt_flags=frozenset({"-p", "--prompt"}),
        one=frozenset(
            {
                *("-m", "--model", "--approval-mode", "--session-file", "--session-id", "--delete-session", "-o"),
                *("--output-format", "-i", "--prompt-interactive"),
            }
        ),
        many=frozenset(
            {
                *("--policy", "--admin-policy", "--allowed-mcp-server-names", "--allowed-tools", "-e"),
                *("--extensions", "--include-directories"),
            }
        ),
        maybe=frozenset({"-r", "--resume", "-w", "--worktree"}),
    ),
    begin=("{flags}", "--session-id", "{session}", "--prompt={prompt}"),
    resume=("{flags}", "--resume", "{session}", f"--prompt={CONTINUE}"),
    sessions=Sessions(
        by="us",
        given=frozenset({"--session-id"}),
        kept=frozenset({"-r", "--resume", "--session-file"}),
        taken=r"already exists\. use --resume",
        missing=r"invalid session identifier|no previous sessions found",
    ),
    texts=Texts(
        limit=(
            r"resource_exhausted",
            r"exhausted your (?:daily )?quota",
            r"quota exceeded",
            r"exceeded your current quota",
            r"quota will reset",
            r"429 too many requests",
            r"status:? 429\b",
        ),
        overload=(
            r"model_capacity_exhausted",
            r"exhausted your capacity",
            r"the model is overloaded",
            r"capacity exceeded",
        ),
        login=(r"please set an auth method", r"api key not valid", r"api_key_invalid", r"unauthenticated"),
    ),
    answers=(Answer(take={"output": "response", "error": "error.message", "session": "session_id"}),),
    defaults=(Default(names=("-o", "--output-format"), words=("--output-format", "json")),),
    permission=Default(names=("--approval-mode", "-y", "--yolo"), words=("--approval-mode", "auto_edit")),
    structured={"-o": frozenset({"json"}), "--output-format": frozenset({"json"})},
)
