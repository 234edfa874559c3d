-- Schema 4: the origin whose task a call was made for; it outlives the task, as the call does. NULL before this schema.

ALTER TABLE call ADD COLUMN origin TEXT;
