-- The inline projections: append_events calls project_control_v1 in its own transaction for batches with control
-- events, so that a caller reads its own write. A rebuild calls the same functions over the same ids.

CREATE OR REPLACE FUNCTION project_control_v1(after bigint, upto bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM project_configs_v1(after, upto);
    PERFORM project_builds_v1(after, upto);
    PERFORM project_runs_v1(after, upto);
END $$;

CREATE OR REPLACE FUNCTION project_configs_v1(after bigint, upto bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    FOR e IN
        SELECT id, stream, type, workspace, recorded_at, data::json AS d FROM events
        WHERE id > after AND id <= upto AND NOT bulk
          AND type IN ('config.registered', 'document.stored', 'safe_mode.changed')
        ORDER BY id
    LOOP
        IF e.type <> 'safe_mode.changed' THEN
            INSERT INTO workspaces VALUES (e.workspace, e.recorded_at) ON CONFLICT DO NOTHING;
        END IF;
        CASE e.type
        WHEN 'config.registered' THEN
            INSERT INTO configs VALUES (
                e.stream, e.workspace, e.d ->> 'name', (e.d ->> 'version')::int, e.d ->> 'digest',
                e.id, e.recorded_at, e.recorded_at)
            ON CONFLICT (id) DO UPDATE
            SET version = excluded.version, digest = excluded.digest, updated_at = excluded.updated_at;
            INSERT INTO config_versions
            VALUES (e.stream, (e.d ->> 'version')::int, e.d ->> 'digest', e.recorded_at);
        WHEN 'document.stored' THEN
            INSERT INTO documents VALUES (
                e.d ->> 'document_id', e.workspace, e.d ->> 'name', (e.d ->> 'size')::bigint, e.d ->> 'sha256',
                e.d ->> 'media_type', e.id, e.recorded_at);
        ELSE
            DELETE FROM safe_mode;
            INSERT INTO safe_mode VALUES (e.id, (e.d ->> 'enabled')::boolean, e.recorded_at);
        END CASE;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION project_builds_v1(after bigint, upto bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    FOR e IN
        SELECT id, stream, type, workspace, recorded_at, data::json AS d FROM events
        WHERE id > after AND id <= upto AND NOT bulk AND type LIKE 'build.%'
        ORDER BY id
    LOOP
        CASE e.type
        WHEN 'build.created' THEN
            INSERT INTO builds (id, workspace_id, config_id, config_version, status, reason, fingerprint, engine,
                                requested_by, attempt, created_id, created_at, updated_at)
            VALUES (e.stream, e.workspace, e.d ->> 'config_id', (e.d ->> 'config_version')::int, 'queued',
                    e.d ->> 'reason', e.d ->> 'fingerprint', e.d ->> 'engine', e.d ->> 'requested_by', 0,
                    e.id, e.recorded_at, e.recorded_at);
        WHEN 'build.started' THEN
            UPDATE builds SET status = 'building', retry_at = NULL, attempt = (e.d ->> 'attempt')::int, worker_id = e.d ->> 'worker_id',
                   python = e.d ->> 'python', started_at = coalesce(started_at, e.recorded_at),
                   updated_at = e.recorded_at
            WHERE id = e.stream;
        WHEN 'build.step' THEN
            UPDATE builds SET step = e.d ->> 'step', updated_at = e.recorded_at WHERE id = e.stream;
        WHEN 'build.cancel_requested' THEN
            UPDATE builds SET cancel_requested_at = coalesce(cancel_requested_at, e.recorded_at),
                   updated_at = e.recorded_at
            WHERE id = e.stream;
        WHEN 'build.lost' THEN
            UPDATE builds SET worker_id = NULL, updated_at = e.recorded_at, step = NULL,
                   status = CASE WHEN e.d ->> 'next' = 'retry' THEN 'queued' ELSE status END,
                   retry_at = CASE WHEN e.d ->> 'next' = 'retry'
                              THEN e.recorded_at + (e.d ->> 'delay_ms')::bigint * interval '1 millisecond' END
            WHERE id = e.stream;
        WHEN 'build.completed' THEN
            UPDATE builds SET status = e.d ->> 'status', exit_code = (e.d ->> 'exit_code')::int,
                   error_message = e.d ->> 'error_message', stop_reason = e.d ->> 'stop_reason',
                   summary = e.d ->> 'summary', packages = e.d -> 'packages',
                   python = coalesce(e.d ->> 'python', python), duration_ms = (e.d ->> 'duration_ms')::bigint,
                   worker_id = NULL, retry_at = NULL, finished_at = e.recorded_at, updated_at = e.recorded_at
            WHERE id = e.stream;
        ELSE
            UPDATE builds SET updated_at = e.recorded_at WHERE id = e.stream;
        END CASE;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION project_runs_v1(after bigint, upto bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    FOR e IN
        SELECT id, stream, type, workspace, recorded_at, data::json AS d FROM events
        WHERE id > after AND id <= upto AND NOT bulk AND (type LIKE 'run.%' OR type = 'build.completed')
        ORDER BY id
    LOOP
        CASE e.type
        WHEN 'run.created' THEN
            INSERT INTO runs (id, workspace_id, config_id, config_version, config_digest, build_id, status,
                              waiting_for, options, inputs, requested_by, attempt, created_id, created_at, updated_at)
            VALUES (e.stream, e.workspace, e.d ->> 'config_id', (e.d ->> 'config_version')::int,
                    e.d ->> 'config_digest', e.d ->> 'build_id', 'queued', 'worker', e.d -> 'options',
                    e.d -> 'inputs', e.d ->> 'requested_by', 0, e.id, e.recorded_at, e.recorded_at);
        WHEN 'run.waiting' THEN
            UPDATE runs SET waiting_for = e.d ->> 'for', updated_at = e.recorded_at WHERE id = e.stream;
        WHEN 'build.completed' THEN  -- a line of the run's feed: what was waiting for the build waits for a worker now
            UPDATE runs SET waiting_for = 'worker', updated_at = e.recorded_at
            WHERE build_id = e.stream AND waiting_for = 'build';
        WHEN 'run.started' THEN
            UPDATE runs SET status = 'running', waiting_for = NULL, retry_at = NULL, attempt = (e.d ->> 'attempt')::int,
                   worker_id = e.d ->> 'worker_id', started_at = coalesce(started_at, e.recorded_at),
                   updated_at = e.recorded_at
            WHERE id = e.stream;
        WHEN 'run.cancel_requested' THEN
            UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, e.recorded_at),
                   updated_at = e.recorded_at
            WHERE id = e.stream;
        WHEN 'run.lost' THEN
            UPDATE runs SET worker_id = NULL, updated_at = e.recorded_at,
                   status = CASE WHEN e.d ->> 'next' = 'retry' THEN 'queued' ELSE status END,
                   waiting_for = CASE WHEN e.d ->> 'next' = 'retry' THEN 'worker' END,
                   retry_at = CASE WHEN e.d ->> 'next' = 'retry'
                              THEN e.recorded_at + (e.d ->> 'delay_ms')::bigint * interval '1 millisecond' END
            WHERE id = e.stream;
        WHEN 'run.artifact' THEN
            INSERT INTO artifacts VALUES (
                e.d ->> 'artifact_id', e.stream, e.d ->> 'name', (e.d ->> 'size')::bigint, e.d ->> 'sha256',
                e.d ->> 'media_type', e.id, e.recorded_at);
            UPDATE runs SET updated_at = e.recorded_at WHERE id = e.stream;
        WHEN 'run.completed' THEN
            UPDATE runs SET status = e.d ->> 'status', exit_code = (e.d ->> 'exit_code')::int,
                   error_message = e.d ->> 'error_message', stop_reason = e.d ->> 'stop_reason',
                   summary = e.d ->> 'summary', result = CASE WHEN json_typeof(e.d -> 'result') <> 'null' THEN e.d -> 'result' END,
                   duration_ms = (e.d ->> 'duration_ms')::bigint, lines = (e.d ->> 'lines')::bigint,
                   bytes = (e.d ->> 'bytes')::bigint, waiting_for = NULL, worker_id = NULL, retry_at = NULL,
                   finished_at = e.recorded_at, updated_at = e.recorded_at
            WHERE id = e.stream;
        ELSE
            UPDATE runs SET updated_at = e.recorded_at WHERE id = e.stream;
        END CASE;
    END LOOP;
END $$;
