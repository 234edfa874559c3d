-- Schema 2: money, outages, and what is to be delivered. Frozen like all schema files; columns as in schema 1.

-- One paid request inside an attempt, or one run of an agent: reserved before it is made, settled after.
CREATE TABLE call (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    executor TEXT NOT NULL,
    channel TEXT,
    model TEXT,
    labels TEXT,
    reserved_microusd INTEGER NOT NULL,
    spent_microusd INTEGER,
    started_at_ms INTEGER NOT NULL,
    settled_at_ms INTEGER,
    outcome TEXT,
    heads TEXT
) STRICT;
CREATE INDEX call_of_task ON call (task_id);
CREATE INDEX call_of_attempt ON call (attempt_id);
CREATE INDEX call_open ON call (ord) WHERE settled_at_ms IS NULL;
CREATE INDEX call_time ON call (started_at_ms);

-- A time in which something could not be reached or used; it is over when it has an end.
CREATE TABLE outage (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    cause TEXT NOT NULL,
    subject TEXT NOT NULL,
    began_at_ms INTEGER NOT NULL,
    ended_at_ms INTEGER,
    problem TEXT,
    parked INTEGER,
    resumed INTEGER,
    heads TEXT
) STRICT;
CREATE INDEX outage_open ON outage (cause, subject) WHERE ended_at_ms IS NULL;
CREATE INDEX outage_time ON outage (began_at_ms);

-- What is to be delivered, in order, to each destination; a row goes when the other side has it.
CREATE TABLE outbox (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    destination TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT,
    body TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    tries INTEGER,
    retry_at_ms INTEGER,
    dead_at_ms INTEGER,
    problem TEXT,
    heads TEXT
) STRICT;
CREATE INDEX outbox_next ON outbox (destination, ord) WHERE dead_at_ms IS NULL;
CREATE INDEX outbox_dead ON outbox (destination, dead_at_ms, ord) WHERE dead_at_ms IS NOT NULL;
CREATE INDEX outbox_subject ON outbox (subject) WHERE subject IS NOT NULL;

-- What a person was asked about a task, by the SHA-256 of the code that the answer must carry; gone when it is answered.
-- `about` is the permit that covers exactly what the person was shown.
CREATE TABLE ask (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL,
    event TEXT NOT NULL,
    about TEXT,
    created_at_ms INTEGER NOT NULL,
    heads TEXT
) STRICT;
CREATE INDEX ask_of ON ask (task_id);

-- Derived from call: what counts against caps, by scope (``all``, ``executor:x``, ``label:x``, ``model:x``) and the day
-- on which the call began (begin of the day in Unix milliseconds, in the zone that stands in meta as `spend_zone`).
CREATE TABLE spend (
    scope TEXT NOT NULL,
    day_at_ms INTEGER NOT NULL,
    reserved_microusd INTEGER NOT NULL,
    spent_microusd INTEGER NOT NULL,
    unknown_microusd INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    PRIMARY KEY (scope, day_at_ms)
) STRICT, WITHOUT ROWID;

-- What the router decided about a task, where it had a choice: JSON with the executor, the rule and what was turned down.
ALTER TABLE task ADD COLUMN route TEXT;
CREATE INDEX task_movable ON task (executor, priority DESC, ord) WHERE ready = 1 AND route IS NOT NULL;

CREATE INDEX task_parent ON task (parent) WHERE parent IS NOT NULL;

-- It answers what the index of the times alone did, and counts what ended since a time without reading the tasks.
DROP INDEX task_finished;
CREATE INDEX task_ended ON task (finished_at_ms, state) WHERE finished_at_ms IS NOT NULL;

-- Until when a label's cap keeps the task from its start; the last millisecond there is: until a person raises its own.
ALTER TABLE task ADD COLUMN budget_at_ms INTEGER;
-- What would run, for executors that cost money: the same again and again is a loop.
ALTER TABLE task ADD COLUMN input_hash TEXT;
CREATE INDEX task_input ON task (input_hash, created_at_ms) WHERE input_hash IS NOT NULL;
-- What was reserved at its start; NULL: it costs nothing, and has no calls.
ALTER TABLE attempt ADD COLUMN reserved_microusd INTEGER;
