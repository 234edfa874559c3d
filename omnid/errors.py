"""What can fail, in one table: every error says what happened, why, and what to do.

Standard library only, because the relay and ``omnictl`` import it. An error is raised by its code, and the code's
entry in `CATALOGUE` gives the three sentences; tests hold every raise in the source against the table.
"""

from typing import Any, NamedTuple


class Message(NamedTuple):
    """The three sentences of one error; each may hold ``{name}`` fields that the raise fills in."""

    what: str
    why: str
    do: str


CATALOGUE: dict[str, Message] = {
    # Requests: what a client sent can't be taken as it is.
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
        "An agent reads all tasks, but changes its own only.",
        "Ask a person to run `omnictl {action} {task}`.",
    ),
    "message_too_large": Message(
        "A message of more than {limit_bytes} bytes was cut off.",
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
    # The command line.
    "bad_usage": Message(
        "{detail}.",
        "This is not how `omnictl {verb}` is used.",
        "See `omnictl {help}`.",
    ),
    "bad_line": Message(
        "Line {line} of {path} can't be taken: {detail}.",
        "Every line holds one task as a JSON object, and all of them are taken or none.",
        "Correct the line and add the file again; docs/omnictl.md lists the fields.",
    ),
    "bad_file": Message(
        "{path} can't be read: {detail}.",
        "The tasks (or the task's standard input) are read before anything is sent.",
        "Give a UTF-8 text file that this user may read, or - for standard input.",
    ),
    "output_failed": Message(
        "The output can't be written: {detail}.",
        "The disk that it goes to may be full, or it is not open for writing.",
        "Send it elsewhere; what was asked of the daemon is done all the same.",
    ),
    "ctl_fault": Message(
        "omnictl failed inside: {detail}.",
        "This is a fault in omnictl, not in what was typed.",
        "Run it again with OMNICTL_DEBUG=1 to see the traceback, and report it.",
    ),
    "not_stopped": Message(
        "The daemon {pid} still runs after {seconds_s} s.",
        "It was asked to stop and has not come to an end.",
        "Look into its log in {state_dir}, or ask again; tasks that run go on in any case.",
    ),
    "demo_failed": Message(
        "The demo can't go on: {detail}.",
        "It needs a temporary directory, and two daemons of its own that start there.",
        "Run it again, with TMPDIR naming another directory if need be; report it if it stays so.",
    ),
    # The store.
    "disk_full": Message(
        "The disk is full: nothing was written.",
        "{detail}",
        "Free some space under {path}; what was sent can simply be sent again.",
    ),
    "disk_low": Message(
        "Only {free_bytes} bytes are free under {path}; new tasks need {needed_bytes}.",
        "store.free_bytes_min keeps room so that what runs can still finish.",
        "Free some space, or lower store.free_bytes_min; then send the task again.",
    ),
    "store_busy": Message(
        "The store did not answer within {seconds_s} s.",
        "The writer is behind (a slow disk, or very large transactions).",
        "Send it again; `omnictl doctor` checks the store.",
    ),
    "store_io": Message(
        "The database {path} can't be written: {detail}.",
        "The disk reported an error, and a failed sync can't be repeated safely.",
        "The daemon stops and recovers at its next start; check the disk first.",
    ),
    "store_closed": Message(
        "The daemon is stopping, so nothing more is written.",
        "A stop was asked for.",
        "Send it again when the daemon is back; `omnictl up` starts it.",
    ),
    "schema_newer": Message(
        "The database {path} has schema {found}; this omnid knows up to {known}.",
        "It was written by a newer omnid.",
        "Upgrade omnid, or point OMNID_STATE at another directory.",
    ),
    "not_a_database": Message(
        "{path} is not an omnid database: {detail}.",
        "The file is of another program, or it is damaged.",
        "Move it away, or restore a backup; nothing in it was changed.",
    ),
    "database_damaged": Message(
        "The table {table} of the journal is damaged: {detail}.",
        "The check that follows a start of the machine found it; a disk that fails or loses what it wrote does that.",
        "Look into the system's log for the disk, keep a copy of the state directory, and restore a backup.",
    ),
    "already_running": Message(
        "Another omnid already uses {path} ({holder}).",
        "One daemon per state directory, or they would run the same tasks.",
        "Use that one (`omnictl status`), stop it (`omnictl down`), or set OMNID_STATE to another directory.",
    ),
    "state_unwritable": Message(
        "The state directory {path} can't be written: {detail}.",
        "The journal, the spool and the lock live there.",
        "Make it writable for this user, or set OMNID_STATE to another directory.",
    ),
    "bad_event": Message(
        "State {state} doesn't take the event {event}.",
        "The state table in docs/states.md doesn't list it.",
        "This is a fault in omnid: please report it with the log.",
    ),
    "replay_mismatch": Message(
        "The log and the tables differ: {detail}.",
        "Every change is written to both in one transaction, so one of them was edited or damaged.",
        "Restore a backup, or keep the database for a report; `omnictl operations` shows the log.",
    ),
    # Config and secrets.
    "config_unreadable": Message(
        "The config {path} can't be read: {detail}.",
        "The file is not valid TOML, or this user may not read it.",
        "Correct it (`omnictl config check` says where); until then the config in use stays.",
    ),
    "config_unknown_key": Message(
        "The config has an unknown key {key}{hint}.",
        "Unknown keys are refused, because a mistyped one would be silently without effect.",
        "Correct or remove it; config/omnid.toml lists every key.",
    ),
    "config_bad_value": Message(
        "The config's {key} = {value} can't be used: {detail}.",
        "Every value is checked once, before any of it takes effect.",
        "Correct {key}; config/omnid.toml says what it takes.",
    ),
    "secret_plain": Message(
        "{key} holds what looks like a secret in plain text.",
        "Secrets are kept as references, so that they appear in no log, journal or backup.",
        "Write env:NAME, file:/path, keychain:SERVICE or exec:COMMAND instead.",
    ),
    "secret_missing": Message(
        "The secret {reference} can't be had: {detail}.",
        "A reference is resolved when it is used.",
        "Provide it, or correct the reference in the config.",
    ),
    # The socket.
    "daemon_down": Message(
        "No omnid answers at {path}.",
        "{detail}",
        "Start it with `omnictl up` (or `omnid run` in a terminal).",
    ),
    "daemon_unheard": Message(
        "The daemon (pid {pid}) runs, but doesn't listen at {path}.",
        "It is still starting, or something has removed the file of its socket.",
        "Try again in a moment. If it stays so, `omnictl down` ends it and `omnictl up` starts it; what runs goes on.",
    ),
    "daemon_lost": Message(
        "The daemon went away before it answered.",
        "{detail}",
        "Send it again: with the same idempotency key nothing is done twice.",
    ),
    "answer_timeout": Message(
        "The daemon did not answer within {seconds_s} s.",
        "It is busy or stopped.",
        "Look at `omnictl status`; send it again with the same idempotency key.",
    ),
    "daemon_no_start": Message(
        "The daemon did not start: {detail}.",
        "The last that it said (in {path}): {said}",
        "Run `omnid run` in a terminal to see it fail, and correct what it names.",
    ),
    "path_too_long": Message(
        "The socket path {path} has {length} bytes; this system takes {limit}.",
        "Unix socket addresses are short by definition (unix(7)).",
        "Set OMNID_SOCKET (or socket.path) to a shorter path.",
    ),
    "foreign_file": Message(
        "{path} is there and is not a dead socket of omnid: {detail}.",
        "omnid never deletes a file that is not its own.",
        "Move it away, or set OMNID_SOCKET to another path.",
    ),
    "foreign_user": Message(
        "A connection of user {uid} was refused.",
        "The socket serves the user that runs the daemon only.",
        "Run omnid as that user.",
    ),
    "unsafe_directory": Message(
        "{path} can be entered by other users (mode {mode}, owner {owner}).",
        "The socket and the journal must be out of reach for others.",
        "chmod 700 it, or choose another directory with OMNID_STATE.",
    ),
    # Executors and attempts.
    "command_not_found": Message(
        "The command {program} was not found.",
        "{detail}",
        "Install it, give its full path, or set PATH with `env` in the executor's config.",
    ),
    "command_no_start": Message(
        "The command {program} could not be started: {detail}.",
        "The system refused it.",
        "Check that the file is executable and the directory exists.",
    ),
    "exit_code": Message(
        "The command ended with exit code {code}.",
        "{detail}",
        "`omnictl logs {task}` shows its output.",
    ),
    "killed_by_signal": Message(
        "The command was ended by {signal}.",
        "Somebody or something (the system when memory is short) sent it that signal.",
        "`omnictl logs {task}` shows its output up to then.",
    ),
    "attempt_timeout": Message(
        "The attempt took longer than {timeout_s} s and was ended.",
        "The task's timeout (or the executor's, or task.timeout_s) bounds each attempt.",
        "Raise it with --timeout, or find out where it hangs with `omnictl logs`.",
    ),
    "deadline_passed": Message(
        "The task's deadline passed before it was done.",
        "It was submitted with a deadline.",
        "Submit it again with a later one, or none.",
    ),
    "spool_full": Message(
        "The attempt's output passed {limit_bytes} bytes; the rest was dropped.",
        "limits.spool_bytes_max bounds what one attempt may leave on the disk.",
        "Let the command write to a file of its own, or raise limits.spool_bytes_max.",
    ),
    "check_failed": Message(
        "The command was done, but its check says it is not: {detail}.",
        "`check` decides whether done is done.",
        "`omnictl logs {task}` shows what the check printed.",
    ),
    "reported_error": Message(
        "{executor} reported an error: {detail}.",
        "A success that carries an error inside is a failure.",
        "`omnictl logs {task}` shows the whole answer.",
    ),
    "bad_result": Message(
        "The result of {executor} can't be read: {detail}.",
        "Its config maps a JSON result, and this is none.",
        "Look at the output with `omnictl logs`, and correct the executor's `result` mapping.",
    ),
    "cancelled": Message(
        "The attempt was ended because the task was cancelled.",
        "{detail}",
        "`omnictl retry` runs it again.",
    ),
    "executor_down": Message(
        "Executor {executor} can't be used: {detail}.",
        "Its probe or its start failed.",
        "It is tried again by itself; `omnictl status` says when.",
    ),
    "executor_crashed": Message(
        "{executor} broke off while it worked: {detail}.",
        "It died, or the connection to it ended.",
        "`omnictl logs {task}` shows what it had said.",
    ),
    "executor_fault": Message(
        "{executor} failed in a way that omnid doesn't know: {detail}.",
        "This is a fault in omnid or in the executor.",
        "Look into the daemon's log for the traceback, and report it.",
    ),
    "unknown_tool": Message(
        "Server {server} has no tool {tool}{hint}.",
        "Its tools/list names what it has: {known}.",
        "Use one of these, or update the server.",
    ),
    "bad_tool": Message(
        "Server {server} describes its tool {tool} in a way that can't be used: {detail}.",
        "The protocol says how a tool is described; the server's other tools are not affected.",
        "Update the server, or report it to whoever makes it.",
    ),
    "bad_arguments": Message(
        "The arguments don't fit the tool {tool}: {detail}.",
        "They are checked against the tool's input schema before the call.",
        "Correct the arguments.",
    ),
    "bad_template": Message(
        "The template {template} can't be filled in: {detail}.",
        "Templates know {{task.id}}, {{task.name}}, {{attempt.id}} and {{attempt.number}}.",
        "Correct the arguments or the executor's config.",
    ),
    "uncertain": Message(
        "Nobody knows whether {executor} finished: {detail}.",
        "The machine or the executor died in the middle, and the executor isn't declared idempotent.",
        "Look at what it left, then `omnictl resolve {task} --done`, `--again` or `--fail`.",
    ),
    "supervisor_lost": Message(
        "The supervisor of the attempt was ended from outside.",
        "{detail}",
        "Nothing to do: what it left was ended too.",
    ),
    # Agents.
    "not_approved": Message(
        "A person denied this task.",
        "{detail}",
        "Ask, or submit something else.",
    ),
    "internal": Message(
        "omnid failed inside: {detail}.",
        "This is a fault in omnid, not in the request.",
        "Look into the daemon's log for the traceback, and report it.",
    ),
}


class OmnidError(Exception):
    """An error with a code from `CATALOGUE`; `what`, `why` and `do` are its sentences, filled in.

    Raises KeyError where the code or one of its fields is missing: that is a fault of the raise, not of the user.
    """

    def __init__(self, code: str, /, **fields: object) -> None:
        message = CATALOGUE[code]
        self.code = code
        self.fields = fields
        self.what = message.what.format(**fields)
        self.why = message.why.format(**fields)
        self.do = message.do.format(**fields)
        super().__init__(self.what)

    def as_dict(self) -> dict[str, Any]:
        """Gives ``{code, what, why, do}``, the shape in which errors cross the socket and lie in the journal."""
        return {"code": self.code, "what": self.what, "why": self.why, "do": self.do}

    def __str__(self) -> str:
        return f"{self.what} {self.why} {self.do}"


class Retryable(OmnidError):
    """It may work later, unchanged: a full disk, a busy store, an executor that is down."""


class Rejected(OmnidError):
    """It will never work as it is: a wrong parameter, an unknown name, a state that forbids it."""


class Fatal(OmnidError):
    """The process can't go on: it stops, and the next start recovers. The only error that passes `guard`."""
