-- Schema 1: the journal. It is frozen: what comes later goes into a file with the next number.
--
-- Times are Unix milliseconds (_at_ms, _ms), money is millionths of a dollar. `ord` is the hybrid logical clock (HLC,
-- 48 bits of milliseconds and 16 of counter) of the change that created the row, so it is the order of creation. `heads`
-- is JSON: for each field edited since, the HLC of its last change. Columns after the word "derived" are not in the log:
-- they follow from what is, and are computed anew by a replay.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The nodes whose changes stand in the log; number 1 is this one.
CREATE TABLE node (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE
) STRICT;

-- The log: append-only. `body` is JSON: {"f": {field: value}, "p": {field: HLC of the head it replaces}}.
CREATE TABLE change (
    seq INTEGER PRIMARY KEY,
    hlc INTEGER NOT NULL,
    node INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    collection TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX change_of ON change (collection, id);
CREATE INDEX change_deletes ON change (seq) WHERE kind = 'delete';

-- Values over 16 KiB, once each; the log and the tables hold the digest.
CREATE TABLE blob (
    sha256 TEXT PRIMARY KEY,
    data TEXT NOT NULL
) STRICT;

CREATE TABLE task (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL,
    number INTEGER NOT NULL,
    title TEXT NOT NULL,
    work TEXT,
    work_blob TEXT,
    executor TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    wake_at_ms INTEGER,
    priority INTEGER NOT NULL,
    lane TEXT,
    kind TEXT NOT NULL,
    labels TEXT,
    assignee TEXT,
    parent TEXT,
    key TEXT,
    body_hash TEXT,
    created_at_ms INTEGER NOT NULL,
    not_before_ms INTEGER,
    deadline_ms INTEGER,
    retry_at_ms INTEGER,
    paused INTEGER,
    approval TEXT,
    cancel INTEGER,
    attempt INTEGER,
    failures INTEGER,
    finished_at_ms INTEGER,
    problem TEXT,
    heads TEXT,
    -- derived: 1 where nothing of its own and no lane keeps an idle task from its start
    ready INTEGER
) STRICT;
CREATE UNIQUE INDEX task_name ON task (origin, number);
CREATE UNIQUE INDEX task_key ON task (origin, key) WHERE key IS NOT NULL;
CREATE INDEX task_state ON task (state);
CREATE INDEX task_waiting ON task (reason) WHERE state = 'waiting';
CREATE INDEX task_ready ON task (executor, priority DESC, ord) WHERE ready = 1;
CREATE INDEX task_wake ON task (wake_at_ms) WHERE wake_at_ms IS NOT NULL;
CREATE INDEX task_deadline ON task (deadline_ms) WHERE deadline_ms IS NOT NULL AND finished_at_ms IS NULL;
CREATE INDEX task_finished ON task (finished_at_ms) WHERE finished_at_ms IS NOT NULL;
CREATE INDEX task_lane_idle ON task (lane, executor, priority DESC, ord) WHERE lane IS NOT NULL AND state = 'idle';
CREATE INDEX task_lane_busy ON task (lane)
    WHERE lane IS NOT NULL AND state IN ('dispatching', 'executing', 'input_required');
CREATE INDEX task_lane_ready ON task (lane) WHERE lane IS NOT NULL AND ready = 1;
CREATE INDEX task_work_blob ON task (work_blob) WHERE work_blob IS NOT NULL;

CREATE TABLE attempt (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    executor TEXT NOT NULL,
    idempotent INTEGER,
    started_at_ms INTEGER NOT NULL,
    ended_at_ms INTEGER,
    outcome TEXT,
    problem TEXT,
    exit_code INTEGER,
    output TEXT,
    output_blob TEXT,
    output_bytes INTEGER,
    value TEXT,
    value_blob TEXT,
    cost_microusd INTEGER,
    route TEXT,
    heads TEXT
) STRICT;
CREATE UNIQUE INDEX attempt_of ON attempt (task_id, number);
CREATE INDEX attempt_open ON attempt (ord) WHERE ended_at_ms IS NULL;
CREATE INDEX attempt_output_blob ON attempt (output_blob) WHERE output_blob IS NOT NULL;
CREATE INDEX attempt_value_blob ON attempt (value_blob) WHERE value_blob IS NOT NULL;

-- What an executor wrote durably beside its attempt.
CREATE TABLE note (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    attempt_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    heads TEXT
) STRICT;
CREATE INDEX note_of ON note (attempt_id, kind);

-- A closed gate: a shared reason why tasks can't start now. An open gate has no row.
CREATE TABLE gate (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    cause TEXT NOT NULL,
    subject TEXT NOT NULL,
    closed_at_ms INTEGER NOT NULL,
    wake_at_ms INTEGER,
    problem TEXT,
    failures INTEGER,
    heads TEXT
) STRICT;

-- An answer to an approval that holds for the same origin, executor, argv and directory from then on.
CREATE TABLE permit (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL,
    executor TEXT NOT NULL,
    work TEXT NOT NULL,
    granted INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    heads TEXT
) STRICT;

-- What a mutation of a session answered, so that its repeat is answered and not done.
CREATE TABLE answer (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    body_hash TEXT NOT NULL,
    result TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    heads TEXT
) STRICT;

-- The highest number given in an origin whose newest tasks were deleted, so that t7 never names two tasks.
CREATE TABLE origin (
    ord INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    number_floor INTEGER NOT NULL,
    heads TEXT
) STRICT;

-- Derived: an edge for each task that has not ended and each task it still waits for.
CREATE TABLE dependency (
    after_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    PRIMARY KEY (after_id, task_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependency_of ON dependency (task_id);

-- Derived: ended tasks whose dependents have yet to be told, because there are more than one transaction takes.
CREATE TABLE cascade (
    after_id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Derived from task.labels.
CREATE TABLE label (
    label TEXT NOT NULL,
    ord INTEGER NOT NULL,
    PRIMARY KEY (label, ord)
) STRICT, WITHOUT ROWID;
