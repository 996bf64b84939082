-- What people look for in the SQLite file of `ade log export --sqlite`; its tables are made as they are in PostgreSQL.

CREATE INDEX events_of_stream ON events (stream, id);
CREATE INDEX events_of_type ON events (type, id);
CREATE INDEX runs_of_config ON runs (config_id, created_at);
CREATE INDEX runs_of_build ON runs (build_id);
CREATE INDEX runs_by_age ON runs (created_at);
CREATE INDEX builds_of_config ON builds (config_id, created_at);
CREATE INDEX builds_by_age ON builds (created_at);
CREATE INDEX run_logs_of_run ON run_logs (run_id, id);
CREATE INDEX build_logs_of_build ON build_logs (build_id, id);
