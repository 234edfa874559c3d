-- Schema 3: what is run again and again. Frozen like all schema files; columns as in schema 1.

-- A schedule; `task` holds the fields of the submit that each run makes. Like a row of the outbox it is written anew
-- and not edited when it has run, so that the log holds what it is now and doesn't grow with its runs.
-- `events` are the names that set it going, each between spaces; `next_at_ms` is empty where no time does.
CREATE TABLE schedule (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL,
    role TEXT NOT NULL,
    schedule TEXT NOT NULL,
    task TEXT NOT NULL,
    params TEXT,
    events TEXT,
    enabled INTEGER,
    created_at_ms INTEGER NOT NULL,
    next_at_ms INTEGER,
    last_at_ms INTEGER,
    last_task TEXT,
    runs INTEGER,
    skipped INTEGER,
    problem TEXT,
    heads TEXT
) STRICT;
CREATE INDEX schedule_due ON schedule (next_at_ms) WHERE next_at_ms IS NOT NULL AND enabled = 1;
