"""What goes wrong with executors and attempts."""

from omnid.messages.message import Message

ATTEMPTS: dict[str, Message] = {
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
        "Mend what it says; it is tried again by itself (`omnictl status` says when).",
    ),
    "no_runner": Message(
        "No runner takes executor {executor} now: {detail}.",
        "It works on runners on other hosts alone, as the config has it.",
        "Start one of them; `omnictl runners` shows how they are.",
    ),
    "runner_refused": Message(
        "Runner {runner} gave {task} back: {detail}.",
        "It surely had no effect there.",
        "It is tried again by itself. If it stays so, look at the config of the runner.",
    ),
    "runner_left": Message(
        "Runner {runner} gave {task} back: it was told to stop.",
        "It surely had no effect there.",
        "It goes to another runner at once, or waits for one; nothing needs to be done.",
    ),
    "runner_silent": Message(
        "Runner {runner} has nothing of {task} any more, and no result of it has come for {silent}.",
        "Its broker has lost the command or the result, so nobody knows how far the task came.",
        "See docs/links.md for how a broker has to keep what it confirms.",
    ),
    "runner_lost": Message(
        "Runner {runner} was lost while it had {task}: it has been silent for {silent}.",
        "Its host, its process or its way to the broker is gone; nobody knows how far the task came.",
        "Start it again: what it did then counts still, unless you have decided otherwise.",
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
        "Templates know {{task.id}}, {{task.name}}, {{task.prompt}}, {{attempt.id}} and {{attempt.number}}.",
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
}
