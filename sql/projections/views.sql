-- Views over the projections. A view is bound to its table: a rebuild makes them anew when the new tables stand, which
-- keeps who may read them. A migration that changes the columns of a table drops its view first.

CREATE OR REPLACE VIEW runs_with_lease AS
SELECT r.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM runs r LEFT JOIN leases l ON l.stream = r.id;

CREATE OR REPLACE VIEW builds_with_lease AS
SELECT b.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM builds b LEFT JOIN leases l ON l.stream = b.id;

-- What the API shows of each, one and in lists. The columns beside the table's are looked up one by one, not by a join: a
-- count looks up none of them, and a list only those of its page. A statement that keeps its plan reads all columns, and
-- fails where they change beneath it: so other columns are another view.

CREATE OR REPLACE VIEW shown_runs_v1 AS
SELECT r.id, r.workspace_id, r.config_id, r.config_version, r.config_digest, r.build_id, r.status, r.waiting_for,
       r.options, r.inputs, r.requested_by, r.attempt, r.worker_id, r.exit_code, r.error_message, r.stop_reason,
       r.summary, r.result, r.duration_ms, r.lines, r.bytes, r.cancel_requested_at, r.created_id, r.created_at,
       r.started_at, r.finished_at, r.updated_at,
       (SELECT l.holder FROM leases l WHERE l.stream = r.id) AS processing_by,
       (SELECT l.expires_at FROM leases l WHERE l.stream = r.id AND l.holder IS NOT NULL) AS lease_expires_at,
       (SELECT l.heartbeat_at FROM leases l WHERE l.stream = r.id AND l.holder IS NOT NULL) AS heartbeat_at,
       (SELECT coalesce(s.ended_id, greatest(s.last_id, b.last_id))
        FROM streams_with_last s LEFT JOIN streams_with_last b ON b.stream = r.build_id
        WHERE s.stream = r.id) AS last_event_id
FROM runs r;

CREATE OR REPLACE VIEW shown_builds_v1 AS
SELECT b.id, b.workspace_id, b.config_id, b.config_version, b.status, b.reason, b.fingerprint, b.engine, b.step,
       b.requested_by, b.attempt, b.worker_id, b.exit_code, b.error_message, b.stop_reason, b.summary, b.packages,
       b.python, b.duration_ms, b.cancel_requested_at, b.created_id, b.created_at, b.started_at, b.finished_at,
       b.updated_at,
       (SELECT l.holder FROM leases l WHERE l.stream = b.id) AS processing_by,
       (SELECT l.expires_at FROM leases l WHERE l.stream = b.id AND l.holder IS NOT NULL) AS lease_expires_at,
       (SELECT l.heartbeat_at FROM leases l WHERE l.stream = b.id AND l.holder IS NOT NULL) AS heartbeat_at,
       (SELECT s.last_id FROM streams_with_last s WHERE s.stream = b.id) AS last_event_id
FROM builds b;

CREATE OR REPLACE VIEW shown_configs_v1 AS
SELECT c.id, c.workspace_id, c.name, c.version, c.digest, c.created_id, c.created_at, c.updated_at,
       (SELECT b.id FROM builds b
        JOIN config_versions v ON v.config_id = b.config_id AND v.version = b.config_version
        WHERE b.config_id = c.id AND v.digest = c.digest  -- an earlier version may have had the same content
          AND b.status = 'active' ORDER BY b.created_id DESC LIMIT 1) AS active_build_id
FROM configs c;
