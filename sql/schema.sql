-- The picture: what the migrations end at, as one reads it. A test proves that both give the same catalogue.
--
-- Nobody runs this file: a database is made by sql/migrations/, then by sql/functions/ and sql/projections/.


-- The log. All other tables follow from `events`, or guard it.

CREATE TABLE log (
    log_id     text        PRIMARY KEY DEFAULT 'log_' || replace(gen_random_uuid()::text, '-', ''),
    one_row    boolean     NOT NULL DEFAULT true UNIQUE CHECK (one_row),
    origin     text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE log IS 'Which log this is: cursors of another log are refused.';

CREATE TABLE events (
    id          bigint      PRIMARY KEY,
    stream      text        NOT NULL,
    seq         bigint      NOT NULL,
    workspace   text        NOT NULL,
    type        text        NOT NULL,
    bulk        boolean     NOT NULL,
    recorded_at timestamptz NOT NULL,
    data        text        NOT NULL
);
COMMENT ON TABLE events IS 'The log: one row per event, ids dense in commit order. Written by append_events alone, never changed.';
-- Nothing is planned by what payloads hold, and a sample of them would outlive their erasure.
ALTER TABLE events ALTER COLUMN data SET STATISTICS 0;
-- For people, who write WHERE stream = '…': some kilobytes per million events, and next to nothing for an append.
CREATE INDEX events_near_stream ON events USING brin (stream text_bloom_ops) WITH (autosummarize = on);
CREATE INDEX control_events_of_stream ON events (stream, id) WHERE NOT bulk;
CREATE INDEX control_events ON events (id) WHERE NOT bulk;

CREATE TABLE segments (
    stream   text   NOT NULL,
    first_id bigint NOT NULL,
    last_id  bigint NOT NULL,
    bytes    bigint NOT NULL,  -- of the payloads as they were appended: how much of it a reader takes at once
    last_seq bigint NOT NULL,
    token    bigint,           -- the lease under which bulk events were appended last, up to here,
    position bigint,           -- and how many: recognises what is sent again
    PRIMARY KEY (stream, last_id) INCLUDE (first_id, bytes)
);
COMMENT ON TABLE segments IS 'Unbroken ranges of ids of one stream, one per append: they lead a reader to the events of a stream.';

CREATE TABLE streams (
    stream          text   PRIMARY KEY,
    workspace       text   NOT NULL,
    first_id        bigint NOT NULL,
    last_control_id bigint NOT NULL,
    ended_id        bigint
);
COMMENT ON TABLE streams IS 'Where each stream begins and ends, and its newest control event, which expectations are about.';

CREATE VIEW streams_with_last AS
SELECT s.stream, s.workspace, s.first_id, newest.last_id, newest.last_seq, s.last_control_id, s.ended_id
FROM streams s CROSS JOIN LATERAL (
    SELECT g.last_id, g.last_seq FROM segments g WHERE g.stream = s.stream ORDER BY g.last_id DESC LIMIT 1) AS newest;

CREATE TABLE leases (
    stream       text        PRIMARY KEY,
    token        bigint      NOT NULL,
    holder       text,
    taken_at     timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE leases IS 'Who may write a run or a build. The token only grows.';

CREATE TABLE append_keys (
    key         text        PRIMARY KEY,
    digest      text        NOT NULL,
    first_id    bigint      NOT NULL,
    last_id     bigint      NOT NULL,
    recorded_at timestamptz NOT NULL
);
CREATE INDEX append_keys_by_age ON append_keys (recorded_at);
COMMENT ON TABLE append_keys IS 'Idempotency keys of the last day, with the ids of the append that each stands for.';

CREATE TABLE checkpoints (
    projection text   PRIMARY KEY,
    id         bigint NOT NULL
);
COMMENT ON TABLE checkpoints IS 'How far each projection that is caught up, not inline, has come.';

CREATE TABLE seals (
    upto       bigint      PRIMARY KEY,
    after      bigint      NOT NULL UNIQUE,  -- the seal before it: of two who seal at once, one is refused
    chain_hash bytea       NOT NULL CHECK (octet_length(chain_hash) = 32),
    marks      bytea       NOT NULL,
    sealed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (upto - after BETWEEN 1 AND 1024 AND octet_length(marks) = 8 * (upto - after))
);
COMMENT ON TABLE seals IS 'The hash chain over events: each seal covers the ids after..upto, with 8 bytes of every event''s hash.';

CREATE TABLE api_keys (
    id           text        PRIMARY KEY,
    parent       text,  -- of a session: the key that it was opened with
    name         text        NOT NULL,
    sha256       bytea       NOT NULL CHECK (octet_length(sha256) = 32),  -- of a secret of 256 random bits
    role         text        NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    workspaces   text[]      NOT NULL CHECK (cardinality(workspaces) > 0),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE INDEX sessions_of_key ON api_keys (parent) WHERE parent IS NOT NULL;
COMMENT ON TABLE api_keys IS 'Keys of the API, and sessions of browsers, which are keys that have a parent and end with it. {*} is every workspace.';

CREATE TABLE schema_migrations (
    name       text        PRIMARY KEY,
    digest     text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);


-- Append-only: by trigger, which stops even a superuser, and by grant, which stops even the owner.

CREATE FUNCTION refuse_change_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation', HINT = 'What happened is corrected by another event.';
END $$;

-- An update passes if it replaces the payload of a bulk event by its hash, and an `event.redacted` in the log says so.
-- There is no switch to turn: whoever may update still cannot do anything else.
CREATE FUNCTION refuse_all_but_redaction_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.bulk
        AND (NEW.id, NEW.stream, NEW.seq, NEW.workspace, NEW.type, NEW.bulk, NEW.recorded_at)
          = (OLD.id, OLD.stream, OLD.seq, OLD.workspace, OLD.type, OLD.bulk, OLD.recorded_at)
        AND NEW.data = '{"redacted":"' || encode(sha256(convert_to(OLD.data, 'UTF8')), 'hex') || '"}'
        AND OLD.data !~ '^\{"redacted":"[0-9a-f]{64}"\}$'  -- the hash of a hash would prove nothing
        AND EXISTS (SELECT FROM events r
                    WHERE r.stream = 'system_log' AND NOT r.bulk AND r.type = 'event.redacted' AND r.id > OLD.id
                      AND r.data::jsonb -> 'event_ids' @> to_jsonb(OLD.id)) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the log is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation', HINT = 'What happened is corrected by another event.';
END $$;

CREATE TRIGGER events_are_never_changed BEFORE DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_v1();
CREATE TRIGGER events_are_only_redacted BEFORE UPDATE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_all_but_redaction_v1();
CREATE TRIGGER seals_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON seals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_v1();
REVOKE UPDATE, DELETE, TRUNCATE ON events, seals FROM PUBLIC, CURRENT_USER;
GRANT UPDATE (data) ON events TO CURRENT_USER;


-- The projections: what the events mean. Each can be thrown away and rebuilt: `ade log rebuild`.

CREATE TABLE workspaces (
    id         text        PRIMARY KEY,
    created_at timestamptz NOT NULL
);

CREATE TABLE configs (
    id           text        PRIMARY KEY,
    workspace_id text        NOT NULL,
    name         text        NOT NULL,
    version      int         NOT NULL,
    digest       text        NOT NULL,
    created_id   bigint      NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
CREATE UNIQUE INDEX configs_by_name ON configs (workspace_id, name);

CREATE TABLE config_versions (
    config_id  text        NOT NULL,
    version    int         NOT NULL,
    digest     text        NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (config_id, version)
);

CREATE TABLE documents (
    id           text        PRIMARY KEY,
    workspace_id text        NOT NULL,
    name         text        NOT NULL,
    size         bigint      NOT NULL,
    sha256       text        NOT NULL,
    media_type   text        NOT NULL,
    created_id   bigint      NOT NULL,
    created_at   timestamptz NOT NULL
);
CREATE INDEX documents_of_workspace ON documents (workspace_id, created_at, created_id);
CREATE INDEX documents_by_name ON documents (workspace_id, name, created_id);

CREATE TABLE safe_mode (
    id         bigint      PRIMARY KEY,
    enabled    boolean     NOT NULL,
    changed_at timestamptz NOT NULL
);

CREATE TABLE builds (
    id                  text        PRIMARY KEY,
    workspace_id        text        NOT NULL,
    config_id           text        NOT NULL,
    config_version      int         NOT NULL,
    status              text        NOT NULL,
    reason              text        NOT NULL,
    fingerprint         text        NOT NULL,
    engine              text,
    step                text,
    exit_code           int,
    error_message       text,
    stop_reason         text,
    summary             text,
    packages            json,
    python              text,
    requested_by        text        NOT NULL,
    attempt             int         NOT NULL,
    worker_id           text,
    duration_ms         bigint,
    cancel_requested_at timestamptz,
    created_id          bigint      NOT NULL,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz,
    finished_at         timestamptz,
    updated_at          timestamptz NOT NULL,
    retry_at            timestamptz  -- lost, and not begun again before this
);
CREATE INDEX builds_of_config ON builds (config_id, created_id);
CREATE INDEX builds_by_age ON builds (created_at, created_id);
CREATE INDEX builds_by_end ON builds (finished_at, created_id) WHERE finished_at IS NOT NULL;
CREATE INDEX builds_by_duration ON builds (duration_ms, created_id) WHERE duration_ms IS NOT NULL;
CREATE INDEX builds_open ON builds (created_id) WHERE status IN ('queued', 'building');

CREATE TABLE runs (
    id                  text        PRIMARY KEY,
    workspace_id        text        NOT NULL,
    config_id           text        NOT NULL,
    config_version      int         NOT NULL,
    config_digest       text        NOT NULL,
    build_id            text,
    status              text        NOT NULL,
    waiting_for         text,
    options             json       NOT NULL,
    inputs              json       NOT NULL,
    exit_code           int,
    error_message       text,
    stop_reason         text,
    summary             text,
    result              json,
    requested_by        text        NOT NULL,
    attempt             int         NOT NULL,
    worker_id           text,
    duration_ms         bigint,
    lines               bigint,
    bytes               bigint,
    cancel_requested_at timestamptz,
    created_id          bigint      NOT NULL,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz,
    finished_at         timestamptz,
    updated_at          timestamptz NOT NULL,
    retry_at            timestamptz  -- lost, and not begun again before this
);
CREATE INDEX runs_of_config ON runs (config_id, created_at, created_id);
CREATE INDEX runs_of_workspace ON runs (workspace_id, created_at, created_id);
CREATE INDEX runs_of_build ON runs (build_id);
CREATE INDEX runs_by_age ON runs (created_at, created_id);
CREATE INDEX runs_by_end ON runs (finished_at, created_id) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_by_duration ON runs (duration_ms, created_id) WHERE duration_ms IS NOT NULL;
CREATE INDEX runs_unwell ON runs (created_at, created_id) WHERE status IN ('failed', 'canceled');
CREATE INDEX runs_open ON runs (created_id) WHERE status IN ('queued', 'running');

CREATE TABLE artifacts (
    id         text        PRIMARY KEY,
    run_id     text        NOT NULL,
    name       text        NOT NULL,
    size       bigint      NOT NULL,
    sha256     text        NOT NULL,
    media_type text        NOT NULL,
    created_id bigint      NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX artifacts_of_run ON artifacts (run_id, created_id);

CREATE TABLE run_logs (
    id         bigint      PRIMARY KEY,
    run_id     text        NOT NULL,
    created_at timestamptz NOT NULL,
    stream     text        NOT NULL,
    level      text,
    message    text        NOT NULL
);
CREATE INDEX run_logs_near_run ON run_logs USING brin (run_id text_bloom_ops) WITH (autosummarize = on);

CREATE TABLE build_logs (
    id         bigint      PRIMARY KEY,
    build_id   text        NOT NULL,
    created_at timestamptz NOT NULL,
    stream     text        NOT NULL,
    level      text,
    step       text,
    message    text        NOT NULL
);
CREATE INDEX build_logs_near_build ON build_logs USING brin (build_id text_bloom_ops) WITH (autosummarize = on);


-- For people: a run or a build with the worker that has it.

CREATE VIEW runs_with_lease AS
SELECT r.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM runs r LEFT JOIN leases l ON l.stream = r.id;

CREATE VIEW builds_with_lease AS
SELECT b.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM builds b LEFT JOIN leases l ON l.stream = b.id;


-- What the API shows of each; see projections/views.sql.

CREATE VIEW shown_runs_v1 AS
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

CREATE VIEW shown_builds_v1 AS
SELECT b.id, b.workspace_id, b.config_id, b.config_version, b.status, b.reason, b.fingerprint, b.engine, b.step,
       b.requested_by, b.attempt, b.worker_id, b.exit_code, b.error_message, b.stop_reason, b.summary, b.packages,
       b.python, b.duration_ms, b.cancel_requested_at, b.created_id, b.created_at, b.started_at, b.finished_at,
       b.updated_at,
       (SELECT l.holder FROM leases l WHERE l.stream = b.id) AS processing_by,
       (SELECT l.expires_at FROM leases l WHERE l.stream = b.id AND l.holder IS NOT NULL) AS lease_expires_at,
       (SELECT l.heartbeat_at FROM leases l WHERE l.stream = b.id AND l.holder IS NOT NULL) AS heartbeat_at,
       (SELECT s.last_id FROM streams_with_last s WHERE s.stream = b.id) AS last_event_id
FROM builds b;

CREATE VIEW shown_configs_v1 AS
SELECT c.id, c.workspace_id, c.name, c.version, c.digest, c.created_id, c.created_at, c.updated_at,
       (SELECT b.id FROM builds b
        JOIN config_versions v ON v.config_id = b.config_id AND v.version = b.config_version
        WHERE b.config_id = c.id AND v.digest = c.digest  -- an earlier version may have had the same content
          AND b.status = 'active' ORDER BY b.created_id DESC LIMIT 1) AS active_build_id
FROM configs c;
