-- The lock and the read in one plain statement: its snapshot is taken before it waits for the lock, so what was
-- committed while it waited is not seen, and two appends give their events the same id.

CREATE FUNCTION naive_append(stream text) RETURNS bigint LANGUAGE sql AS $$
    WITH alone AS MATERIALIZED (SELECT pg_advisory_xact_lock(4702111234474983745))
    INSERT INTO events (id, stream, seq, workspace, type, bulk, recorded_at, data)
    SELECT (SELECT coalesce(max(id), 0) + 1 FROM events), stream, 1, 'ws', 'job.noted', true, clock_timestamp(), '{}'
    FROM alone
    RETURNING id
$$;
