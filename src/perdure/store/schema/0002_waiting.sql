-- A busy thread's line: messages and runs that wait for the active run to end, counted together. 0 does not wait.
ALTER TABLE runs ADD COLUMN waits BIGINT NOT NULL DEFAULT 0;

ALTER TABLE messages ADD COLUMN waits BIGINT NOT NULL DEFAULT 0;

-- Lists of messages show those that wait at the end.
DROP INDEX messages_of_thread;

CREATE INDEX messages_of_thread ON messages (thread_id, waits, seq);

CREATE INDEX waiting_runs ON runs (thread_id, waits) WHERE waits > 0;

CREATE INDEX waiting_messages ON messages (thread_id, waits) WHERE waits > 0;

-- The rule "one active run per thread" lives here and nowhere else; a run that waits is not active yet.
DROP INDEX one_active_run;

CREATE UNIQUE INDEX one_active_run ON runs (thread_id)
  WHERE waits = 0 AND status IN ('queued', 'in_progress', 'requires_action', 'cancelling');

DROP INDEX active_runs;

CREATE INDEX active_runs ON runs (status, waits, seq)
  WHERE status IN ('queued', 'in_progress', 'requires_action', 'cancelling');

-- What threads are found by. Filled out of their bodies by the step that goes with this file.
CREATE TABLE thread_metadata (
  thread_seq BIGINT NOT NULL,
  project_id TEXT NOT NULL,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (thread_seq, key)
);

CREATE INDEX threads_of_metadata ON thread_metadata (project_id, key, value, thread_seq);

-- With the time, a list of threads of some days reads no bodies of others.
DROP INDEX threads_of_project;

CREATE INDEX threads_of_project ON threads (project_id, seq, created_at);
