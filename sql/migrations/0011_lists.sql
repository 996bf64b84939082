-- A list is sorted by what an index has in that order, the id of the creation last: so a page begins where the one
-- before it ended, however deep it lies, and of rows with equal times none is skipped.

DROP INDEX runs_by_age, runs_of_workspace, runs_of_config, builds_by_age, documents_of_workspace;
CREATE INDEX runs_by_age ON runs (created_at, created_id);
CREATE INDEX runs_of_workspace ON runs (workspace_id, created_at, created_id);
CREATE INDEX runs_of_config ON runs (config_id, created_at, created_id);
CREATE INDEX runs_by_end ON runs (finished_at, created_id) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_by_duration ON runs (duration_ms, created_id) WHERE duration_ms IS NOT NULL;
CREATE INDEX runs_unwell ON runs (created_at, created_id) WHERE status IN ('failed', 'canceled');

CREATE INDEX builds_by_age ON builds (created_at, created_id);
CREATE INDEX builds_by_end ON builds (finished_at, created_id) WHERE finished_at IS NOT NULL;
CREATE INDEX builds_by_duration ON builds (duration_ms, created_id) WHERE duration_ms IS NOT NULL;

CREATE INDEX documents_of_workspace ON documents (workspace_id, created_at, created_id);
CREATE INDEX documents_by_name ON documents (workspace_id, name, created_id);
