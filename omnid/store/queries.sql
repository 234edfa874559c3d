-- Every statement that omnid runs on its journal, by name. Written so that PostgreSQL can run it too: $1, RETURNING,
-- ON CONFLICT, and no JSON functions. A fragment is put in where {its name} stands.

-- fragment: task_row
ord, id, origin, number, coalesce(work, (SELECT data FROM blob WHERE sha256 = work_blob)), executor, state, priority,
reason, wake_at_ms, lane, kind, labels, assignee, parent, key, body_hash, created_at_ms, not_before_ms, deadline_ms,
retry_at_ms, paused, approval, cancel, attempt, failures, finished_at_ms, problem, route, heads, budget_at_ms

-- fragment: attempt_row
ord, id, task_id, number, executor, idempotent, started_at_ms, ended_at_ms, outcome, problem, exit_code,
coalesce(output, (SELECT data FROM blob WHERE sha256 = output_blob)), output_bytes,
coalesce(value, (SELECT data FROM blob WHERE sha256 = value_blob)), cost_microusd, route, heads, reserved_microusd

-- fragment: brief_row
t.id, t.origin, t.number, t.state, t.reason, t.wake_at_ms, t.title, t.executor, t.priority, t.lane, t.kind, t.labels,
t.attempt, t.created_at_ms, a.started_at_ms, t.finished_at_ms, t.problem, t.ready, t.ord

-- fragment: brief_from
task t LEFT JOIN attempt a ON a.task_id = t.id AND a.number = t.attempt

-- fragment: outbox_row
ord, id, destination, kind, subject, body, created_at_ms, tries, retry_at_ms, dead_at_ms, problem, heads

-- fragment: schedule_row
ord, id, name, origin, role, schedule, task, params, enabled, created_at_ms, next_at_ms, last_at_ms, last_task, runs,
skipped, problem

-- name: meta_all
SELECT name, value FROM meta
-- name: meta_one
SELECT value FROM meta WHERE name = $1
-- name: meta_set
INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value
-- name: node_add
INSERT INTO node (number, id) VALUES ($1, $2) ON CONFLICT DO NOTHING
-- name: log_end
SELECT max(seq), max(hlc) FROM (SELECT seq, hlc FROM change ORDER BY seq DESC LIMIT 1) AS last
-- name: append_change
INSERT INTO change (seq, hlc, node, incarnation, collection, id, kind, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
-- name: forget_changes
DELETE FROM change WHERE collection = $1 AND id IN (SELECT value FROM json_each($2))
-- name: forget_deleted
DELETE FROM change WHERE collection = $1 AND id = $2 AND seq <= (
    SELECT max(seq) FROM change WHERE collection = $1 AND id = $2 AND kind = 'delete' AND hlc < $3
)
-- name: keep_blob
INSERT INTO blob (sha256, data) VALUES ($1, $2) ON CONFLICT DO NOTHING
-- name: blob_by_digest
SELECT data FROM blob WHERE sha256 = $1
-- name: blobs_of_task
SELECT work_blob FROM task WHERE id = $1 AND work_blob IS NOT NULL
UNION SELECT output_blob FROM attempt WHERE task_id = $1 AND output_blob IS NOT NULL
UNION SELECT value_blob FROM attempt WHERE task_id = $1 AND value_blob IS NOT NULL
-- name: drop_blob
DELETE FROM blob WHERE sha256 = $1
AND NOT EXISTS (SELECT 1 FROM task WHERE work_blob = $1)
AND NOT EXISTS (SELECT 1 FROM attempt WHERE output_blob = $1)
AND NOT EXISTS (SELECT 1 FROM attempt WHERE value_blob = $1)


-- name: count_by_state
SELECT state, NULL, count(*) FROM task WHERE state <> 'waiting' GROUP BY state
UNION ALL SELECT 'waiting', reason, count(*) FROM task WHERE state = 'waiting' GROUP BY reason
-- name: task_by_id
SELECT {task_row} FROM task WHERE id = $1
-- name: task_by_name
SELECT {task_row} FROM task WHERE origin = $1 AND number = $2
-- name: task_by_key
SELECT {task_row} FROM task WHERE origin = $1 AND key = $2
-- name: next_origin
SELECT min(origin) FROM task WHERE origin > $1
-- name: last_number
SELECT max(number) FROM (
    SELECT max(number) AS number FROM task WHERE origin = $1
    UNION ALL SELECT number_floor FROM origin WHERE id = $1
) AS given
-- name: number_floor
SELECT ord, number_floor, heads FROM origin WHERE id = $1
-- name: ready_executors
-- A step in the index for each executor that has something to start, not one for each that there is.
WITH RECURSIVE named (executor) AS (
    SELECT min(executor) FROM task WHERE ready = 1
    UNION ALL SELECT (SELECT min(executor) FROM task WHERE ready = 1 AND executor > named.executor) FROM named
    WHERE named.executor IS NOT NULL
) SELECT executor FROM named WHERE executor IS NOT NULL
-- name: ready_tasks
SELECT {task_row} FROM task WHERE executor = $1 AND ready = 1 ORDER BY priority DESC, ord LIMIT $2
-- name: ready_behind
SELECT ord, labels FROM task WHERE executor = $1 AND ready = 1 AND priority = $2 AND ord > $3 ORDER BY ord LIMIT $4
-- name: ready_priority_below
SELECT max(priority) FROM task WHERE executor = $1 AND ready = 1 AND priority < $2
-- name: task_by_ord
SELECT {task_row} FROM task WHERE ord = $1
-- name: movable_tasks
SELECT {task_row} FROM task WHERE executor = $1 AND ready = 1 AND route IS NOT NULL AND (attempt IS NULL OR NOT EXISTS (
    SELECT 1 FROM attempt a WHERE a.task_id = task.id AND (a.outcome IS NULL OR a.outcome <> 'unstarted')
)) ORDER BY priority DESC, ord LIMIT $2 OFFSET $3
-- name: due_tasks
SELECT {task_row} FROM task WHERE wake_at_ms <= $1 ORDER BY wake_at_ms LIMIT $2
-- name: expired_waiting
SELECT {task_row} FROM task WHERE deadline_ms <= $1 AND finished_at_ms IS NULL
AND state NOT IN ('dispatching', 'executing', 'input_required', 'uncertain') ORDER BY deadline_ms LIMIT $2
-- name: expired_running
SELECT id FROM task WHERE deadline_ms <= $1 AND finished_at_ms IS NULL
AND state NOT IN ('idle', 'waiting', 'uncertain') ORDER BY deadline_ms LIMIT $2
-- name: next_wake
SELECT min(wake_at_ms) FROM task WHERE wake_at_ms IS NOT NULL
-- name: next_deadline
SELECT min(deadline_ms) FROM task WHERE deadline_ms > $1 AND finished_at_ms IS NULL

-- name: lane_busy
SELECT 1 FROM task WHERE lane = $1 AND state IN ('dispatching', 'executing', 'input_required') LIMIT 1
-- name: lane_ready
SELECT ord FROM task WHERE lane = $1 AND ready = 1
-- name: lane_next
SELECT executor, ord FROM task WHERE lane = $1 AND state = 'idle' AND executor > $2
ORDER BY executor, priority DESC, ord LIMIT 1
-- name: lane_holder
SELECT id, origin, number, labels FROM task
WHERE lane = $1 AND state IN ('dispatching', 'executing', 'input_required') LIMIT 1
-- name: set_ready
UPDATE task SET ready = $1 WHERE ord = $2

-- name: add_dependency
INSERT INTO dependency (after_id, task_id) VALUES ($1, $2) ON CONFLICT DO NOTHING
-- name: dependents
SELECT task_id FROM dependency WHERE after_id = $1 ORDER BY task_id LIMIT $2
-- name: drop_dependency
DELETE FROM dependency WHERE after_id = $1 AND task_id = $2
-- name: drop_dependencies_of
DELETE FROM dependency WHERE task_id = $1
-- name: count_dependencies
SELECT count(*) FROM dependency WHERE task_id = $1
-- name: open_dependencies
SELECT t.origin, t.number, t.labels FROM dependency d JOIN task t ON t.id = d.after_id WHERE d.task_id = $1 ORDER BY t.ord LIMIT 5
-- name: cascades
SELECT after_id FROM cascade LIMIT $1
-- name: add_cascade
INSERT INTO cascade (after_id) VALUES ($1) ON CONFLICT DO NOTHING
-- name: drop_cascade
DELETE FROM cascade WHERE after_id = $1

-- name: add_label
INSERT INTO label (label, ord) VALUES ($1, $2) ON CONFLICT DO NOTHING
-- name: drop_label
DELETE FROM label WHERE label = $1 AND ord = $2

-- name: attempt_by_number
SELECT {attempt_row} FROM attempt WHERE task_id = $1 AND number = $2
-- name: attempts_of
SELECT {attempt_row} FROM attempt WHERE task_id = $1 ORDER BY number DESC LIMIT $2
-- name: count_without_result
SELECT count(*) FROM attempt WHERE task_id = $1 AND outcome IN ('unstarted', 'lost')
-- name: count_attempts
SELECT count(*) FROM attempt WHERE task_id = $1
-- name: cost_of_task
SELECT count(CASE WHEN outcome <> 'unstarted' OR outcome IS NULL THEN 1 END), count(cost_microusd), sum(cost_microusd),
count(reserved_microusd) FROM attempt WHERE task_id = $1
-- name: attempt_ids
SELECT id FROM attempt WHERE task_id = $1
-- name: attempt_head
SELECT ord, id, task_id, number, ended_at_ms, idempotent, heads, reserved_microusd, executor
FROM attempt WHERE id = $1
-- name: open_attempts
SELECT {attempt_row} FROM attempt WHERE ended_at_ms IS NULL AND ord > $1 ORDER BY ord LIMIT $2

-- name: ledger_beyond
-- The newest attempt that is one too many.
SELECT ord FROM attempt ORDER BY ord DESC LIMIT 1 OFFSET $1
-- name: ledger_ended
-- Those whose results are still owed stay.
SELECT id FROM attempt WHERE ord < $1 AND ended_at_ms IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM outbox WHERE subject = attempt.id) ORDER BY ord LIMIT $2

-- name: attempts_begun
-- After one that was lost and may not be repeated a person has decided, and knows of all that was lost up to it.
SELECT count(*), max(CASE WHEN outcome = 'lost' AND idempotent = 1 AND number > (
    SELECT coalesce(max(number), 0) FROM attempt
    WHERE task_id = $1 AND number < $2 AND outcome = 'lost' AND idempotent IS NOT 1
) THEN 1 ELSE 0 END) FROM attempt
WHERE task_id = $1 AND number < $2 AND executor = $3 AND coalesce(outcome, '') <> 'unstarted'
-- name: session_of_task
SELECT n.body FROM attempt a JOIN note n ON n.attempt_id = a.id
WHERE a.task_id = $1 AND a.number < $2 AND a.executor = $3 AND n.kind = 'session' ORDER BY n.ord DESC LIMIT 1
-- name: attempt_since
SELECT min(started_at_ms) FROM attempt WHERE ended_at_ms IS NULL AND ord > $1 AND executor = $2

-- name: open_outage
SELECT ord, id, parked, heads, began_at_ms FROM outage WHERE cause = $1 AND subject = $2 AND ended_at_ms IS NULL LIMIT 1
-- name: last_outage
SELECT ord, id, parked, heads, ended_at_ms FROM outage WHERE cause = $1 AND subject = $2 ORDER BY ord DESC LIMIT 1
-- name: old_outages
SELECT id FROM outage WHERE ended_at_ms < $1 ORDER BY began_at_ms LIMIT $2

-- name: notes_of
SELECT body FROM note WHERE attempt_id = $1 AND kind = $2 ORDER BY ord
-- name: note_ids
SELECT id FROM note WHERE attempt_id = $1
-- name: count_notes
SELECT count(*) FROM note WHERE attempt_id = $1
-- name: count_notes_of_task
SELECT count(*) FROM attempt a JOIN note n ON n.attempt_id = a.id WHERE a.task_id = $1 AND n.kind = $2

-- fragment: call_row
ord, id, task_id, attempt_id, executor, channel, model, labels, reserved_microusd, spent_microusd, started_at_ms,
settled_at_ms, outcome, origin, heads

-- name: call_by_id
SELECT {call_row} FROM call WHERE id = $1
-- name: calls_of_attempt
SELECT {call_row} FROM call WHERE attempt_id = $1 ORDER BY ord
-- name: count_calls
SELECT count(*) FROM call WHERE attempt_id = $1
-- name: count_calls_since
SELECT count(*) FROM call WHERE task_id = $1 AND started_at_ms > $2
-- name: calls_page
SELECT {call_row} FROM call WHERE ord > $1 ORDER BY ord LIMIT $2
-- name: old_calls
SELECT {call_row} FROM call WHERE started_at_ms < $1 AND settled_at_ms IS NOT NULL ORDER BY started_at_ms LIMIT $2
-- name: money_of_task
SELECT coalesce(sum(spent_microusd), 0),
coalesce(sum(CASE WHEN settled_at_ms IS NULL THEN reserved_microusd END), 0),
coalesce(sum(CASE WHEN settled_at_ms IS NOT NULL AND spent_microusd IS NULL THEN reserved_microusd END), 0),
count(*) FROM call WHERE task_id = $1
-- name: spend_add
INSERT INTO spend (scope, day_at_ms, reserved_microusd, spent_microusd, unknown_microusd, calls)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (scope, day_at_ms) DO UPDATE SET
reserved_microusd = spend.reserved_microusd + excluded.reserved_microusd,
spent_microusd = spend.spent_microusd + excluded.spent_microusd,
unknown_microusd = spend.unknown_microusd + excluded.unknown_microusd, calls = spend.calls + excluded.calls
-- name: spend_drop_empty
DELETE FROM spend WHERE scope = $1 AND day_at_ms = $2 AND calls = 0
-- name: spend_drop_all
DELETE FROM spend
-- name: spend_between
SELECT coalesce(sum(spent_microusd), 0), coalesce(sum(reserved_microusd), 0), coalesce(sum(unknown_microusd), 0),
coalesce(sum(calls), 0) FROM spend WHERE scope = $1 AND day_at_ms >= $2 AND day_at_ms < $3
-- name: spend_scopes
SELECT scope, sum(spent_microusd), sum(reserved_microusd), sum(unknown_microusd), sum(calls) FROM spend
WHERE scope >= $1 AND scope < $2 AND day_at_ms >= $3 GROUP BY scope ORDER BY 2 DESC, scope LIMIT $4
-- name: spend_days
SELECT day_at_ms, spent_microusd, reserved_microusd, unknown_microusd, calls FROM spend
WHERE scope = $1 AND day_at_ms >= $2 ORDER BY day_at_ms DESC LIMIT $3
-- name: spend_all
SELECT scope, day_at_ms, spent_microusd, reserved_microusd, unknown_microusd, calls FROM spend ORDER BY scope, day_at_ms
-- name: earlier_same
SELECT origin, number FROM task WHERE input_hash = $1 AND created_at_ms > $2 ORDER BY created_at_ms DESC LIMIT $3
-- name: count_children
SELECT count(*) FROM task WHERE parent = $1
-- name: parent_of
SELECT parent, origin FROM task WHERE id = $1
-- name: waiting_for_money
SELECT {task_row} FROM task WHERE state = 'waiting' AND reason = 'budget'
ORDER BY wake_at_ms IS NULL, priority DESC, ord LIMIT $1
-- name: needs_money
SELECT {brief_row} FROM {brief_from}
WHERE t.state = 'waiting' AND t.reason = 'budget' AND t.wake_at_ms IS NULL ORDER BY t.ord LIMIT $1

-- name: gates
SELECT id, cause, subject, closed_at_ms, wake_at_ms, problem, failures, heads, ord FROM gate ORDER BY ord
-- name: gate_by_id
SELECT id, cause, subject, closed_at_ms, wake_at_ms, problem, failures, heads, ord FROM gate WHERE id = $1

-- name: permit_by_id
SELECT granted, ord, heads FROM permit WHERE id = $1
-- name: answer_by_id
SELECT body_hash, result FROM answer WHERE id = $1
-- name: old_answers
SELECT id FROM answer WHERE ord < $1 ORDER BY ord LIMIT $2
-- name: answer_at
SELECT ord FROM answer ORDER BY ord DESC LIMIT 1 OFFSET $1

-- name: outbox_next
SELECT {outbox_row} FROM outbox WHERE destination = $1 AND dead_at_ms IS NULL AND ord > $2 ORDER BY ord LIMIT $3
-- name: outbox_by_id
SELECT {outbox_row} FROM outbox WHERE id = $1
-- name: outbox_places
SELECT destination, dead_at_ms IS NULL, count(*) FROM outbox WHERE id IN (SELECT value FROM json_each($1))
GROUP BY 1, 2
-- name: outbox_of
SELECT id FROM outbox WHERE subject = $1 AND dead_at_ms IS NULL LIMIT 1
-- name: outbox_count
SELECT count(*) FROM outbox WHERE destination = $1 AND dead_at_ms IS NULL
-- name: outbox_last
SELECT max(ord) FROM outbox WHERE destination = $1 AND dead_at_ms IS NULL
-- name: outbox_next_destination
SELECT min(destination) FROM outbox WHERE dead_at_ms IS NULL AND destination > $1
-- name: outbox_dead_count
SELECT count(*) FROM outbox WHERE destination = $1 AND dead_at_ms IS NOT NULL
-- name: outbox_dead_next_destination
SELECT min(destination) FROM outbox WHERE dead_at_ms IS NOT NULL AND destination > $1
-- name: outbox_dead_oldest
SELECT id FROM outbox WHERE destination = $1 AND dead_at_ms IS NOT NULL ORDER BY dead_at_ms, ord LIMIT $2
-- name: outbox_dead_of
SELECT id FROM outbox WHERE subject = $1 AND destination = $2 AND dead_at_ms IS NOT NULL
-- name: outbox_dead
SELECT {outbox_row} FROM outbox WHERE dead_at_ms IS NOT NULL AND ord > $1 ORDER BY ord LIMIT $2
-- name: meta_like
SELECT name, value FROM meta WHERE name >= $1 AND name < $2

-- name: ask_by_id
SELECT id, task_id, event, about FROM ask WHERE id = $1
-- name: asks_of
SELECT id, event FROM ask WHERE task_id = $1

-- name: finished_before
SELECT id FROM task WHERE finished_at_ms < $1 ORDER BY finished_at_ms LIMIT $2
-- name: old_tombstones
SELECT collection, id FROM change WHERE kind = 'delete' AND hlc < $1 ORDER BY seq LIMIT $2

-- name: open_tasks_page
SELECT {brief_row} FROM {brief_from} WHERE t.state = $1 AND t.ord < $2 ORDER BY t.ord DESC LIMIT $3
-- name: tasks_page
SELECT {brief_row} FROM {brief_from} WHERE t.ord < $1 ORDER BY t.ord DESC LIMIT $2
-- name: labelled_page
SELECT {brief_row} FROM label l JOIN task t ON t.ord = l.ord
LEFT JOIN attempt a ON a.task_id = t.id AND a.number = t.attempt
WHERE l.label = $1 AND l.ord < $2 ORDER BY l.ord DESC LIMIT $3
-- name: unfinished_of
SELECT count(*) FROM (
    SELECT 1 FROM task WHERE origin = $1
    AND state IN ('idle', 'dispatching', 'executing', 'waiting', 'input_required', 'uncertain') LIMIT $2
) AS some
-- name: count_of_origin
SELECT state, reason, count(*) FROM (
    SELECT state, CASE WHEN state = 'waiting' THEN reason END AS reason FROM task
    WHERE origin = $1 ORDER BY number DESC LIMIT $2
) AS newest GROUP BY state, reason
-- name: running_of_origin
SELECT executor, count(*) FROM task
WHERE state IN ('dispatching', 'executing', 'input_required') AND origin = $1 GROUP BY executor
-- name: brief_by_id
SELECT {brief_row} FROM {brief_from} WHERE t.id = $1
-- name: needs_you
SELECT {brief_row} FROM {brief_from} WHERE t.state = $1 ORDER BY t.ord LIMIT $2
-- name: waiting_for
SELECT {brief_row} FROM {brief_from} WHERE t.state = 'waiting' AND t.reason = $1 ORDER BY t.ord LIMIT $2

-- name: waiting_after
SELECT id, ord FROM task WHERE state = 'waiting' AND reason = $1 AND ord > $2 ORDER BY ord LIMIT $3

-- name: origin_of_attempt
SELECT t.origin FROM attempt a JOIN task t ON t.id = a.task_id WHERE a.id = $1
-- name: changes_page
SELECT c.seq, c.hlc, n.id, c.incarnation, c.collection, c.id, c.kind, c.body
FROM change c JOIN node n ON n.number = c.node WHERE c.seq > $1 AND c.seq <= $2 ORDER BY c.seq LIMIT $3
-- name: changes_of
SELECT c.seq, c.hlc, n.id, c.incarnation, c.collection, c.id, c.kind, c.body
FROM change c JOIN node n ON n.number = c.node WHERE c.collection = $1 AND c.id = $2 AND c.seq > $3
ORDER BY c.seq LIMIT $4
-- name: last_seq
SELECT coalesce(max(seq), 0) FROM change
-- name: last_change_of
SELECT max(seq) FROM change WHERE collection = $1 AND id = $2
-- name: seq_before
SELECT seq FROM change WHERE hlc < $1 ORDER BY seq DESC LIMIT 1
-- name: idle_not_ready
SELECT id FROM task WHERE state = 'idle' AND lane IS NULL AND ready IS NULL LIMIT $1
-- name: ready_not_idle
SELECT id FROM task WHERE ready = 1 AND state <> 'idle' LIMIT $1
-- name: has_label
SELECT 1 FROM label WHERE label = $1 AND ord = $2
-- name: label_page
SELECT l.label, l.ord, t.id, t.labels FROM label l LEFT JOIN task t ON t.ord = l.ord
WHERE (l.label, l.ord) > ($1, $2) ORDER BY l.label, l.ord LIMIT $3
-- name: dependencies_of
SELECT after_id FROM dependency WHERE task_id = $1
-- name: dependency_page
SELECT d.after_id, d.task_id, t.state FROM dependency d LEFT JOIN task t ON t.id = d.task_id
WHERE (d.after_id, d.task_id) > ($1, $2) ORDER BY d.after_id, d.task_id LIMIT $3
-- name: cascade_of
SELECT 1 FROM cascade WHERE after_id = $1
-- name: next_lane
SELECT min(lane) FROM task WHERE lane IS NOT NULL AND state = 'idle' AND lane > $1
-- name: derive_page
SELECT ord, id, state, lane, labels, coalesce(work, (SELECT data FROM blob WHERE sha256 = work_blob)) FROM task
WHERE ord > $1 ORDER BY ord LIMIT $2

-- name: ended_since
-- Without grouping: one pass over the index of ends, and no sorting.
SELECT count(*) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE state = 'failed'),
    count(*) FILTER (WHERE state = 'cancelled')
FROM task WHERE finished_at_ms > $1
-- name: failed_since
SELECT {brief_row} FROM {brief_from} WHERE t.finished_at_ms > $1 AND +t.state = 'failed'
ORDER BY t.finished_at_ms DESC LIMIT $2
-- name: count_ready
SELECT count(*) FROM (SELECT 1 FROM task WHERE executor = $1 AND ready = 1 LIMIT $2) AS some
-- name: ready_labels
SELECT labels FROM task WHERE executor = $1 AND ready = 1 ORDER BY priority DESC, ord LIMIT $2
-- name: outages_since
SELECT cause, subject, began_at_ms, ended_at_ms FROM outage
WHERE began_at_ms > $1 ORDER BY began_at_ms LIMIT $2
-- name: outages_after
SELECT cause, subject, began_at_ms, ended_at_ms FROM outage
WHERE ended_at_ms IS NULL OR ended_at_ms > $1 ORDER BY began_at_ms LIMIT $2
-- name: outages_newest
SELECT cause, subject, began_at_ms, ended_at_ms, parked, resumed, problem FROM outage
WHERE began_at_ms >= $1 ORDER BY began_at_ms DESC LIMIT $2
-- name: outages_open
SELECT cause, subject, began_at_ms, ended_at_ms FROM outage WHERE ended_at_ms IS NULL ORDER BY ord LIMIT $1

-- name: calls_of_task
SELECT id, reserved_microusd, spent_microusd, settled_at_ms, executor, channel, model, started_at_ms, outcome FROM call
WHERE task_id = $1 ORDER BY ord


-- name: schedule_by_name
SELECT {schedule_row} FROM schedule WHERE name = $1
-- name: schedules_page
SELECT {schedule_row} FROM schedule WHERE name > $1 ORDER BY name LIMIT $2
-- name: schedules_due
SELECT {schedule_row} FROM schedule WHERE next_at_ms <= $1 AND enabled = 1 ORDER BY next_at_ms, ord LIMIT $2
-- name: schedule_next
SELECT min(next_at_ms) FROM schedule WHERE next_at_ms IS NOT NULL AND enabled = 1
-- name: schedules_on
SELECT {schedule_row} FROM schedule WHERE enabled = 1 AND events IS NOT NULL ORDER BY name LIMIT $1
-- name: schedules_of
SELECT {schedule_row} FROM schedule WHERE origin = $1 ORDER BY name LIMIT $2
-- name: schedule_count
SELECT count(*) FROM schedule
