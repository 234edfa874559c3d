"""What agents may not do, and what goes wrong with them."""

from omnid.messages.message import Message

AGENTS: dict[str, Message] = {
    "not_approved": Message(
        "A person denied this task.",
        "{detail}",
        "Ask, or submit something else.",
    ),
    "budget_reached": Message(
        "{lid} of {limit} leaves too little {window}: {used}, and a run of {executor} may cost {need}.",
        "What a run may cost is reserved before it starts, and would pass the cap.",
        "It goes on by itself when that is over, or at once when {lid} is raised in the config.",
    ),
    "budget_reserved": Message(
        "What runs now has reserved the rest of {lid}, {limit} {window}: {used}.",
        "A run of {executor} may cost {need}, which would pass it.",
        "It goes on as soon as a run ends that has cost less than it may.",
    ),
    "budget_never": Message(
        "A run of {executor} may cost {need}, more than {lid} of {limit} ever allows.",
        "What a run may cost is reserved before it starts: `cost_max_usd` of its executor, else budget.run_usd.",
        "Raise {lid} in the config, or say with `cost_max_usd` of the executor that a run costs less.",
    ),
    "budget_task": Message(
        "{task} has used what it may cost, {limit}: {used}.",
        "Its next attempt would need at least {need}.",
        "`omnictl budget {task} USD` raises it, `omnictl cancel {task}` gives it up.",
    ),
    "loop": Message(
        "The same input went to {executor} {count} times within {seconds_s} s already: {tasks}.",
        "budget.repeats_max and budget.repeats_s stop a loop before it costs much.",
        "Look at what these tasks gave; ask for something else, wait, or let a person submit it.",
    ),
    "tree_too_deep": Message(
        "The task would be nested {depth} deep; at most {limit} are taken.",
        "It comes from inside {parent}; agents.depth_max bounds how deep tasks may submit tasks.",
        "Do the work in {parent} itself, or let a person raise agents.depth_max.",
    ),
    "tree_too_wide": Message(
        "{parent} has submitted {count} tasks already; at most {limit} are taken.",
        "agents.children_max bounds how many tasks one task may submit.",
        "Do the rest in {parent} itself, or let a person raise agents.children_max.",
    ),
    "internal": Message(
        "omnid failed inside: {detail}.",
        "This is a fault in omnid, not in the request.",
        "Look into the daemon's log for the traceback, and report it.",
    ),
}
