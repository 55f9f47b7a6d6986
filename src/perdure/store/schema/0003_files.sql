-- Files and uploads. Their bytes lie in the blob store under the name in `blob`; a blob without a row here is an orphan.
CREATE TABLE files (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL,
  purpose TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  bytes BIGINT NOT NULL,
  sha256 TEXT NOT NULL,
  blob TEXT NOT NULL,
  body TEXT NOT NULL
);

CREATE INDEX files_of_project ON files (project_id, seq);

CREATE INDEX files_of_purpose ON files (project_id, purpose, seq);

CREATE INDEX files_of_blob ON files (blob);

CREATE INDEX expiring_files ON files (expires_at) WHERE expires_at IS NOT NULL;

-- Which assistants and threads name a file in their tool_resources: `owner` is the id of one. Deleting the file finds
-- them here, and takes it out of them.
CREATE TABLE file_uses (
  file_id TEXT NOT NULL,
  owner TEXT NOT NULL,
  PRIMARY KEY (file_id, owner)
);

CREATE INDEX file_uses_of_owner ON file_uses (owner);

-- `expires_after_seconds` is for the file that it becomes.
CREATE TABLE uploads (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL,
  status TEXT NOT NULL,
  bytes BIGINT NOT NULL,
  mime_type TEXT NOT NULL,
  expires_after_seconds BIGINT,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  body TEXT NOT NULL
);

CREATE INDEX expiring_uploads ON uploads (status, expires_at);

CREATE TABLE upload_parts (
  seq {serial},
  id TEXT NOT NULL UNIQUE,
  upload_id TEXT NOT NULL,
  bytes BIGINT NOT NULL,
  blob TEXT NOT NULL,
  created_at BIGINT NOT NULL
);

CREATE INDEX parts_of_upload ON upload_parts (upload_id);

CREATE INDEX parts_of_blob ON upload_parts (blob);
