"""What a client sent can't be taken as it is."""

from omnid.messages.message import Message

REQUESTS: dict[str, Message] = {
    "bad_request": Message(
        "The request can't be read: {detail}.",
        "A request must have the parameters that its method documents.",
        "Correct {where} and send it again; `omnictl help` and docs/api.md list the parameters.",
    ),
    "unknown_method": Message(
        "There is no method {method}.",
        "This daemon (omnid {version}) doesn't offer it{hint}.",
        "Use one of the methods in docs/api.md, or upgrade the daemon.",
    ),
    "not_allowed": Message(
        "{method} is not open to {role}s.",
        "Some operations are for people at the terminal only, so that an agent can't grant itself rights.",
        "Ask a person to run it with omnictl.",
    ),
    "other_origin": Message(
        "{task} is not a task of {origin}.",
        "What an agent sees of others it only reads; it changes its own tasks.",
        "Ask a person to run `omnictl {action} {task}`.",
    ),
    "executor_closed": Message(
        "{origin} may not use the executor {executor}.",
        "The section [[origin]] that holds for {origin} in the config names those that it may: {known}.",
        "Use one of these, or ask a person to submit it, or to add {executor} there.",
    ),
    "shows_all": Message(
        "{method} is not open to {origin}.",
        "It adds up the tasks of all origins, and the config lets {origin} see some of them only.",
        "Ask for tasks one by one or in a list (task.get, task.list), or ask a person to run it with omnictl.",
    ),
    "message_too_large": Message(
        "A message of more than {limit_bytes} bytes was not taken.",
        "One line may hold at most socket.message_bytes_max bytes.",
        "Send less at once (split the batch), or raise socket.message_bytes_max in the config.",
    ),
    "too_many_clients": Message(
        "The daemon already serves {clients_max} clients.",
        "socket.clients_max bounds the memory that clients can take.",
        "Close a client that is no longer used, or raise socket.clients_max in the config.",
    ),
    "input_too_large": Message(
        "The task's input is {size_bytes} bytes; at most {limit_bytes} are taken.",
        "limits.input_bytes_max keeps the journal small.",
        "Put the input into a file and pass its path, or raise limits.input_bytes_max.",
    ),
    "too_many": Message(
        "{count} {things} were given; at most {limit} are taken.",
        "{setting} bounds what one request may hold.",
        "Send less at once, or raise {setting} in the config.",
    ),
    "nothing_to_do": Message(
        "The task says {detail} to do.",
        "A task holds exactly one of: argv (a command), server + tool (an MCP call), prompt (a model).",
        "Give exactly one of them, for example `omnictl add -- make test`.",
    ),
    "kind_missing": Message(
        "No executor of kind `{kind}` is there for this task.",
        "{why}",
        "{remedy}",
    ),
    "unknown_executor": Message(
        "There is no executor named {executor}{hint}.",
        "Executors are named in the config; `command` is built in.",
        "Use one of: {known}; or add an [[executor]] section of that name to the config.",
    ),
    "wrong_executor": Message(
        "Executor {executor} is of kind {kind} and can't run this task, which asks for {wanted}.",
        "A command goes to a `command` executor, a tool call to an `mcp` executor.",
        "Leave the executor out, or name one of kind {wanted}.",
    ),
    "bad_cwd": Message(
        "The directory {cwd} can't be used.",
        "{why}",
        "Give an absolute path of a directory that exists.",
    ),
    "key_reused": Message(
        "The idempotency key {key} already belongs to {task}, which asks for something else.",
        "The same key with the same body gives the same task; with another body it is a mistake.",
        "Use a new key for a new task, or send exactly what was sent before.",
    ),
    "unknown_task": Message(
        "There is no task {task}{hint}.",
        "It was never submitted here, was deleted, or was removed after its time (retention in the config).",
        "`omnictl list --all` shows the tasks that are there.",
    ),
    "unknown_schedule": Message(
        "There is no schedule {schedule}.",
        "It was never added here, or was removed; presets of the config have their names there.",
        "`omnictl schedule list` shows those that are there.",
    ),
    "bad_schedule": Message(
        "The schedule can't be used: {where}: {detail}.",
        "It runs at its times (`cron`, `every`, `at`), on events, or by hand alone, and submits a new task each time.",
        "Correct {where} and send it again; docs/schedules.md shows examples.",
    ),
    "schedule_taken": Message(
        "There is a schedule {schedule} already.",
        "A schedule has one name, and a preset of the config is a schedule too.",
        "Choose another name, or remove the other one: `omnictl schedule rm {schedule}`.",
    ),
    "schedule_busy": Message(
        "Schedule {schedule} is not run: {task}, its last run, has not ended.",
        "Its overlap is skip, so one run at a time.",
        "Wait for it or cancel it; with overlap = queue, a run by hand waits by itself.",
    ),
    "other_schedule": Message(
        "{schedule} is not a schedule of {origin}.",
        "An agent sees all schedules, but changes its own only.",
        "Ask a person to use `omnictl schedule`.",
    ),
    "schedule_of_config": Message(
        "{schedule} is a preset of the config.",
        "What stands in the config is changed there, so that there is one place to look.",
        "Take its [[preset]] section out, or `omnictl schedule disable {schedule}`.",
    ),
    "unknown_attempt": Message(
        "{task} has no attempt {number}.",
        "Its attempts are numbered from 1; the last one so far is {last}.",
        "`omnictl show {task}` lists them.",
    ),
    "ambiguous_task": Message(
        "{task} names more than one task: {candidates}.",
        "Short names count within an origin.",
        "Give the origin too (`{example}`), or the task's UUID.",
    ),
    "dependency_cycle": Message(
        "These tasks wait for each other: {cycle}.",
        "A task starts after those that it names in `after`, so a circle would never start.",
        "Take one of the `after` entries out.",
    ),
    "dependency_failed": Message(
        "{task} comes after {after}, which ended as {state}.",
        "A task that depends on another needs it to succeed.",
        "Mend and retry {after} first, or leave it out of `after`.",
    ),
    "not_in_state": Message(
        "{task} is {state}, so it can't take `{event}`.",
        "{why}",
        "`omnictl show {task}` tells what it can take; {remedy}.",
    ),
    "no_question": Message(
        "{task} has no open question{which}.",
        "A question is answered once, and ends with its attempt.",
        "`omnictl show {task}` says what it does now.",
    ),
    "answer_unfit": Message(
        "The answer to {key} of {task} can't be taken: {detail}.",
        "An answer fits the form of its question, or whoever asked could do nothing with it.",
        "`omnictl answer {task}` shows the question and its form.",
    ),
    "busy_key": Message(
        "The request {request} of this session was answered before with another body.",
        "A session's request ids are used once, so that a repeat is answered and not done again.",
        "Start a new session.",
    ),
    "too_many_waiting": Message(
        "{count} tasks already wait; at most {limit} may.",
        "limits.waiting_tasks_max bounds the disk that waiting tasks take.",
        "Wait until some are done, cancel some, or raise limits.waiting_tasks_max.",
    ),
    "batch_task": Message(
        "tasks[{index}]: {what}",
        "{why}",
        "{do} Nothing of the batch was taken.",
    ),
    "duplicate_ref": Message(
        "The name {ref} is given to two tasks of the batch.",
        "`ref` names a task inside its batch, so that others can come after it.",
        "Give each task its own ref.",
    ),
    "bad_cursor": Message(
        "The page cursor {cursor} can't be read.",
        "A cursor is what the page before gave as `next`, unchanged.",
        "Start again without a cursor.",
    ),
    "bad_time": Message(
        "{text} is not a time.",
        "Times are Unix milliseconds, ISO 8601 (2026-11-21T08:00:00+01:00), today, or relative (+90s, +2h; ago: 2h); "
        "durations are written 90s, 10m, 2h or 1d.",
        "Write it in one of these ways.",
    ),
}
