"""What goes wrong between a client and the daemon."""

from omnid.messages.message import Message

CONNECTIONS: dict[str, Message] = {
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
    "daemon_differs": Message(
        "The daemon does not understand this `omnid mcp` {version}: {detail}",
        "It is of another version, or was asked for something that it doesn't know.",
        "Correct the arguments of `omnid mcp`, or restart the daemon with `omnictl down` and `omnictl up`.",
    ),
    "daemon_lost": Message(
        "The daemon went away before it answered.",
        "{detail}",
        "Send it again: with the same idempotency key nothing is done twice.",
    ),
    "answer_timeout": Message(
        "The daemon did not answer within {seconds_s} s.",
        "It is busy or stopped.",
        "Send it again with the same idempotency key. If it stays so, look into the daemon's log, or kill the daemon "
        "and start it again with `omnictl up`: nothing that was accepted is lost by that.",
    ),
    "daemon_no_start": Message(
        "The daemon did not start: {detail}.",
        "{why}",
        "{do}",
    ),
    "http_start": Message(
        "HTTP can't be served at {listen}: {detail}.",
        "http.listen in the config asks for it, and omnid doesn't start with less than it was asked for.",
        "Correct [http] in the config, or set http.listen to nothing.",
    ),
    "http_refused": Message(
        "The request was refused: {detail}.",
        "{why}",
        "{do}",
    ),
    "body_too_large": Message(
        "The request's body is larger than {limit_bytes} bytes.",
        "http.body_bytes_max bounds the memory that a request can take.",
        "Send less at once, put large inputs into files and pass their paths, or raise http.body_bytes_max.",
    ),
    "link_down": Message(
        "The link {link} is down: {detail}.",
        "Its broker can't be reached, or doesn't answer; what goes over it waits.",
        "It is dialled again by itself. If it stays so, look at the broker.",
    ),
    "link_refused": Message(
        "The link {link} can't be used: {detail}.",
        "This is how the broker or the config is, and waiting alone doesn't change it.",
        "Correct the broker or the link in the config; it is dialled again by itself.",
    ),
    "link_full": Message(
        "The link {link} takes nothing now: {detail}.",
        "Its broker is short of memory or disk; what is to go over it waits, and what comes is still taken.",
        "Make room on the broker, or let the ends that are away read what waits for them.",
    ),
    "name_taken": Message(
        "The name {name} on the link {link} is taken by {holder}.",
        "Two of one name would take each other's messages, and both would do them.",
        "End the other, or give one of them another name. Once the other is gone, the name is taken over by itself.",
    ),
    "message_refused": Message(
        "A message on the link {link} is refused: {detail}.",
        "Only messages of this version, to this end, that whoever has the link's key has signed are taken.",
        "Bring both ends to the same version and key. `omnictl dead` shows it, and the broker has it whole.",
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
}
