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
    "unknown_channel": Message(
        "There is no channel {channel}{hint}.",
        "`reply_to` names a [[destination]] of the config, and {known}.",
        "Use one of these, or add the destination to the config.",
    ),
    "no_target": Message(
        "The channel {channel} needs a target or a session.",
        "It is an OpenClaw that reaches many chats, and the answer goes to one.",
        "Add `target` (a chat) or `session` to `reply_to`, or `target` to the destination in the config.",
    ),
    "unknown_delivery": Message(
        "There is no dead delivery {id}.",
        "It was delivered, dropped, or is still being tried.",
        "`omnictl dead list` shows those that were given up.",
    ),
    "nothing_to_retry": Message(
        "{id} came over the link {link}, so it can't be sent from here again.",
        "It could not be taken: another version, a wrong signature, or not from omnid. `omnictl dead show` says which.",
        "Mend the end that sent it; then `omnictl dead drop {id}`.",
    ),
    "delivery_failed": Message(
        "{destination} could not be reached: {detail}.",
        "The other side is down, slow, or not set up.",
        "It is tried again by itself; `omnictl status` says when.",
    ),
    "delivery_delayed": Message(
        "{destination} asks to be left alone for {after_s} s: {detail}.",
        "It said so with Retry-After.",
        "It is tried again after that time.",
    ),
    "delivery_refused": Message(
        "{destination} refuses this delivery: {detail}.",
        "It would refuse it every time.",
        "Correct the destination in the config, then `omnictl dead retry`.",
    ),
    "destination_gone": Message(
        "The config has no destination {destination} any more.",
        "It was there when the task was submitted.",
        "Add it to the config again, then `omnictl dead retry`; or `omnictl dead drop`.",
    ),
    "given_up": Message(
        "{destination} could not be reached for {days} days.",
        "The last that went wrong: {detail}",
        "Mend it, then `omnictl dead retry`; outbox.give_up_days says how long it is tried.",
    ),
    "bad_answer": Message(
        "The answer {text} can't be taken: {detail}.",
        "An answer is 1 (approve), 2 (again) or 3 (drop), or one of these words.",
        "Answer with one that the question offers.",
    ),
    "bad_code": Message(
        "The answer to {task} doesn't carry its code.",
        "The question names a code that only its reader knows, so that no agent answers for a person; it holds once.",
        "Have the person answer with the number and the code, or run omnictl.",
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
