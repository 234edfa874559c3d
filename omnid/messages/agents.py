"""What agents may not do, and what goes wrong with them."""

from omnid.messages.message import Message

AGENTS: dict[str, Message] = {
    "not_approved": Message(
        "A person denied this task.",
        "{detail}",
        "Ask, or submit something else.",
    ),
    "rule_unusable": Message(
        "Rule {rule} fits this task, and none of its executors is there: {detail}.",
        "The first rule that fits decides, so that a task never goes where no rule sends it.",
        "Add one of them to the config, change the rule, or name an executor; `omnictl route` shows the rules.",
    ),
    "rule_unknown_executor": Message(
        "Rule {rule} names an executor that isn't in the config: {executor}{hint}.",
        "Its other executors get its tasks; where it has none for a task, that is refused.",
        "Add an [[executor]] of that name, or take it out of the rule.",
    ),
    "rule_unreachable": Message(
        "Rule {rule} never decides: rule {earlier}, which stands before it, takes all that it fits.",
        "The first rule that fits a task decides.",
        "Put it before {earlier}, or narrow that one.",
    ),
    "outside_hours": Message(
        "Executor {executor} starts work within {only} only ({zone}).",
        "The config says so (`only`).",
        "Nothing: it goes on by itself then. What runs when its hours end is not stopped.",
    ),
    "internal": Message(
        "omnid failed inside: {detail}.",
        "This is a fault in omnid, not in the request.",
        "Look into the daemon's log for the traceback, and report it.",
    ),
}
