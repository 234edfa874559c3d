"""What agents may not do, and what goes wrong with them."""

from omnid.messages.message import Message

AGENTS: dict[str, Message] = {
    "not_approved": Message(
        "A person denied this task.",
        "{detail}",
        "Ask, or submit something else.",
    ),
    "agent_limit": Message(
        "{executor} can take no work for now: {said}",
        "It has hit a limit of its provider, so the attempt doesn't count, and no other task of it starts.",
        "Nothing to do: one task tries it when the limit lifts, and the others follow; `omnictl why {task}` says when.",
    ),
    "agent_login": Message(
        "{executor} needs a person: {said}",
        "It can't work until somebody logs in, renews its key, or pays; the attempt doesn't count.",
        "Do what it says, then `omnictl resume --executor {executor}`.",
    ),
    "agent_denied": Message(
        "{executor} was not allowed to use {tools}.",
        "It has no permission for that and nobody was there to ask, so what it reports as done may not be.",
        "Add it to `allowed_tools` of the executor, or let a check decide (`--check`); then `omnictl retry {task}`.",
    ),
    "agent_silent": Message(
        "{executor} ended with exit code 0 and said nothing.",
        "A run that leaves no answer is no success.",
        "`omnictl logs {task}` shows what it wrote; run it by hand to see why.",
    ),
    "session_gone": Message(
        "{executor} knows nothing of the session that it should go on with.",
        "{said}",
        "Nothing to do where it is begun anew; otherwise look at what it left, then `omnictl resolve {task}`.",
    ),
    "session_taken": Message(
        "{executor} has a session of that name already.",
        "{said}",
        "Nothing to do: it is gone on with.",
    ),
    "internal": Message(
        "omnid failed inside: {detail}.",
        "This is a fault in omnid, not in the request.",
        "Look into the daemon's log for the traceback, and report it.",
    ),
}
