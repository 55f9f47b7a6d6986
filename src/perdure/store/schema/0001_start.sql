-- Every resource keeps the JSON that goes out in `body`; what the API does not show stands in columns beside it.
-- `seq` orders lists: several objects share one created_at second. {serial} is each driver's own counting key.

CREATE TABLE projects (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL
);

INSERT INTO projects (id, name, created_at) VALUES ('proj_default', 'default', 0);

CREATE TABLE api_keys (
  id TEXT PRIMARY KEY,
  project_id TEXT NOT NULL,
  name TEXT NOT NULL,
  key_hash TEXT NOT NULL UNIQUE,
  redacted TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  revoked_at BIGINT
);

CREATE TABLE assistants (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  extra TEXT NOT NULL DEFAULT '{}',
  body TEXT NOT NULL
);

CREATE INDEX assistants_of_project ON assistants (project_id, seq);

CREATE TABLE threads (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL
);

CREATE INDEX threads_of_project ON threads (project_id, seq);

CREATE TABLE messages (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  thread_id TEXT NOT NULL,
  run_id TEXT,
  role TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL
);

CREATE INDEX messages_of_thread ON messages (thread_id, seq);

CREATE INDEX messages_of_run ON messages (run_id, seq) WHERE run_id IS NOT NULL;

CREATE TABLE runs (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  thread_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  assistant_id TEXT NOT NULL,
  status TEXT NOT NULL,
  attempt BIGINT NOT NULL DEFAULT 0,
  worker_id TEXT,
  lease_until DOUBLE PRECISION,
  recoveries BIGINT NOT NULL DEFAULT 0,
  last_event BIGINT NOT NULL DEFAULT 0,
  expires_at BIGINT NOT NULL,
  ended_at BIGINT,
  created_at BIGINT NOT NULL,
  extra TEXT NOT NULL DEFAULT '{}',
  body TEXT NOT NULL
);

CREATE INDEX runs_of_thread ON runs (thread_id, seq);

-- The rule "one active run per thread" lives here and nowhere else.
CREATE UNIQUE INDEX one_active_run ON runs (thread_id)
  WHERE status IN ('queued', 'in_progress', 'requires_action', 'cancelling');

CREATE INDEX active_runs ON runs (status, seq)
  WHERE status IN ('queued', 'in_progress', 'requires_action', 'cancelling');

CREATE INDEX ended_runs ON runs (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE steps (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  run_id TEXT NOT NULL,
  thread_id TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL
);

CREATE INDEX steps_of_run ON steps (run_id, seq);

CREATE TABLE run_events (
  run_id TEXT NOT NULL,
  last_sequence BIGINT NOT NULL,
  events TEXT NOT NULL,
  PRIMARY KEY (run_id, last_sequence)
);

-- A list cursor that names a deleted object keeps its place.
CREATE TABLE tombstones (
  id TEXT PRIMARY KEY,
  seq BIGINT NOT NULL,
  parent TEXT NOT NULL,
  deleted_at BIGINT NOT NULL
);
