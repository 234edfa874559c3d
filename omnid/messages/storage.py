"""What goes wrong with the store."""

from omnid.messages.message import Message

STORAGE: dict[str, Message] = {
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
    "no_snapshot": Message(
        "The journal has no snapshot of the time when the cloud went: {detail}.",
        "One is made then, so that there is a state to go back to; it takes none of the room of store.free_bytes_min.",
        "The journal itself is well. See that there is room under {path}; the next outage makes another snapshot.",
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
    "journal_damaged": Message(
        "The journal {path} is damaged: {detail}.",
        "A disk that fails does that, and so does another program that writes into the file.",
        "Keep a copy of the state directory, look into the system's log for the disk, and put a backup or a snapshot "
        "in the journal's place (docs/mode.md says how).",
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
    "state_moved": Message(
        "The state directory {path} is not the one that this daemon began with.",
        "It was moved, removed or replaced while the daemon ran, and nobody would find what is written to the old one.",
        "Put it back if you want its tasks, and start omnid again: `omnictl up`. `omnictl down` comes before a move.",
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
}
