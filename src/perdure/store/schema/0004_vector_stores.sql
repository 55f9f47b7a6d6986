-- Vector stores, what is in them, and what was made of it. A store's row is the lock of all that hangs on it.
-- `version` counts the changes of what can be found in it: a reader that has seen a version loads what came later.
CREATE TABLE vector_stores (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  last_active_at BIGINT NOT NULL,
  expires_at BIGINT,
  embedder TEXT NOT NULL,
  version BIGINT NOT NULL DEFAULT 0,
  body TEXT NOT NULL
);

CREATE INDEX vector_stores_of_project ON vector_stores (project_id, seq);

CREATE INDEX expiring_vector_stores ON vector_stores (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE file_batches (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  vector_store_id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL
);

CREATE INDEX file_batches_of_store ON file_batches (vector_store_id);

-- `id` is the file's. `bulk` is 0 for files that somebody may be waiting for, 1 for those that came many at once.
-- `changed` is the store's version when the file was last changed for readers.
CREATE TABLE vector_store_files (
  seq {serial},
  vector_store_id TEXT NOT NULL,
  id TEXT NOT NULL,
  batch_id TEXT,
  bulk BIGINT NOT NULL DEFAULT 0,
  status TEXT NOT NULL,
  attempt BIGINT NOT NULL DEFAULT 0,
  worker_id TEXT,
  lease_until DOUBLE PRECISION,
  recoveries BIGINT NOT NULL DEFAULT 0,
  changed BIGINT NOT NULL DEFAULT 0,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL,
  UNIQUE (vector_store_id, id)
);

CREATE INDEX files_of_vector_store ON vector_store_files (vector_store_id, seq);

CREATE INDEX vector_stores_of_file ON vector_store_files (id);

CREATE INDEX files_of_batch ON vector_store_files (batch_id, seq) WHERE batch_id IS NOT NULL;

CREATE INDEX files_in_line ON vector_store_files (bulk, seq) WHERE status = 'in_progress' AND worker_id IS NULL;

CREATE INDEX held_files ON vector_store_files (lease_until) WHERE worker_id IS NOT NULL;

CREATE INDEX searchable_files ON vector_store_files (vector_store_id, seq, attempt, changed)
  WHERE status = 'completed';

-- What an attempt at a file wrote; it counts once the file is completed at that attempt. `vector` holds
-- little-endian single-precision numbers, `terms` what search by words needs.
CREATE TABLE chunks (
  file_seq BIGINT NOT NULL,
  attempt BIGINT NOT NULL,
  number BIGINT NOT NULL,
  page BIGINT,
  tokens BIGINT NOT NULL,
  text TEXT NOT NULL,
  vector {bytes} NOT NULL,
  terms {bytes} NOT NULL,
  PRIMARY KEY (file_seq, attempt, number)
);

-- Chunks that nobody needs any more, up to and with that attempt: they are deleted a few at a time.
CREATE TABLE dead_chunks (
  file_seq BIGINT PRIMARY KEY,
  attempt BIGINT NOT NULL
);
