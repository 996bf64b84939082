-- The copy of another log, into an empty one: the same ids, seqs and times. A page is one call, and all pages are one
-- transaction, so that the copy is there as a whole or not at all. It holds the log's lock to its end: the caller sets a
-- limit to how long the server waits for the next page.
--
-- Outcomes: `imported`; else nothing of the page was written, and the caller rolls back: `occupied`, the log is not
-- empty; `seq`, `ended`, `workspace`, of the event `at_id`; `contradiction`, which the tables refuse, with their reason.
CREATE OR REPLACE FUNCTION import_events_v1(
    copied_from     text,
    first_id        bigint,    -- of this page; its events have the ids from there on
    event_stream    text[],
    event_seq       bigint[],
    event_workspace text[],    -- what the event itself says; that of the stream's first event counts
    event_type      text[],
    event_bulk      boolean[],
    event_ends      boolean[], -- it is terminal
    event_moment    text[],
    payloads        text       -- of all events, a line each
) RETURNS TABLE (outcome text, at_id bigint, reason text)
-- A custom plan would fold the arrays into constants, megabytes of them, and be made anew for each page.
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    last_id bigint := first_id + cardinality(event_stream) - 1;
    head    bigint;
BEGIN
    -- Before the log's lock, as a redaction takes them: the projector's next step finds these lines in their tables.
    PERFORM FROM checkpoints c ORDER BY c.projection FOR UPDATE;
    PERFORM pg_advisory_xact_lock(4702111234474983745);
    SELECT coalesce(max(e.id), 0) INTO head FROM events e;
    IF head = 0 AND first_id = 1 THEN
        UPDATE log SET log_id = DEFAULT, origin = copied_from;
    ELSIF head <> first_id - 1 OR NOT EXISTS (  -- it was not this transaction that began
            SELECT FROM log l WHERE l.origin = copied_from AND l.xmin = pg_current_xact_id()::xid) THEN
        outcome := 'occupied'; at_id := head;
        RETURN NEXT;
        RETURN;
    END IF;

    WITH line AS (
        SELECT first_id - 1 + l.n AS id, l.*
        FROM unnest(event_stream, event_seq, event_workspace, event_type, event_bulk, event_ends, event_moment,
                    string_to_array(payloads, E'\n')) WITH ORDINALITY AS l (stream, seq, workspace, type, bulk, ends, moment, data, n)
    ), placed AS MATERIALIZED (
        SELECT l.id, l.stream, l.seq, l.type, l.bulk, l.ends, l.moment::timestamptz AS recorded_at, l.data,
               coalesce(s.workspace, first_value(l.workspace) OVER earlier) AS workspace,
               coalesce(s.last_seq, 0) + row_number() OVER earlier AS due,
               l.id - row_number() OVER earlier AS island,
               s.ended_id IS NOT NULL OR coalesce(bool_or(l.ends) OVER before, false) AS late
        FROM line l LEFT JOIN streams_with_last s ON s.stream = l.stream
        WINDOW earlier AS (PARTITION BY l.stream ORDER BY l.id),
               before AS (earlier ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ), wrong AS MATERIALIZED (
        SELECT p.id, CASE WHEN p.seq <> p.due THEN 'seq' WHEN p.late THEN 'ended' ELSE 'workspace' END AS what, p.due
        FROM placed p WHERE p.seq <> p.due OR p.late OR p.workspace IS NULL ORDER BY p.id LIMIT 1
    ), good AS (
        SELECT * FROM placed WHERE NOT EXISTS (SELECT FROM wrong)
    ), kept AS (
        INSERT INTO events (id, stream, seq, workspace, type, bulk, recorded_at, data)
        SELECT g.id, g.stream, g.seq, g.workspace, g.type, g.bulk, g.recorded_at, g.data FROM good g ORDER BY g.id
    ), kept_segments AS (
        INSERT INTO segments (stream, first_id, last_id, bytes, last_seq)
        SELECT g.stream, min(g.id), max(g.id), sum(octet_length(g.data)), max(g.seq)
        FROM good g GROUP BY g.stream, g.island, g.id / 1000
    ), kept_streams AS (
        INSERT INTO streams AS s (stream, workspace, first_id, last_control_id, ended_id)
        SELECT g.stream, min(g.workspace), min(g.id),
               coalesce(max(g.id) FILTER (WHERE NOT g.bulk), 0), max(g.id) FILTER (WHERE g.ends)
        FROM good g GROUP BY g.stream
        ON CONFLICT ON CONSTRAINT streams_pkey DO UPDATE SET
            ended_id = excluded.ended_id, last_control_id = greatest(s.last_control_id, excluded.last_control_id)
    )
    SELECT w.what, w.id, 'expected ' || w.due INTO outcome, at_id, reason FROM wrong w;

    IF outcome IS NULL THEN
        BEGIN
            PERFORM project_control_v1(head, last_id);
            PERFORM project_run_logs_v1(head, last_id);
            PERFORM project_build_logs_v1(head, last_id);
            UPDATE checkpoints c SET id = last_id WHERE c.projection IN ('run_logs', 'build_logs');
            outcome := 'imported'; at_id := last_id;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            outcome := 'contradiction'; at_id := first_id; reason := SQLERRM;
        END;
    END IF;
    RETURN NEXT;
END $$;
REVOKE EXECUTE ON FUNCTION import_events_v1 FROM PUBLIC;
