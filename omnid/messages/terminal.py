"""What goes wrong on the command line."""

from omnid.messages.message import Message

TERMINAL: dict[str, Message] = {
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
    "demo_needs": Message(
        "This demo needs a broker: {detail}.",
        "It starts one of its own in a temporary directory, and brings none along.",
        "Install it, or take the other one with --link redis or --link rabbitmq.",
    ),
    "demo_failed": Message(
        "The demo can't go on: {detail}.",
        "It needs a temporary directory, and two daemons of its own that start there.",
        "Run it again, with TMPDIR naming another directory if need be; report it if it stays so.",
    ),
}
