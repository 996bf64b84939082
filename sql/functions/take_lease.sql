-- Taking a lease changes who may write, so it waits for the log's lock: an append that was judged under the old token
-- is visible before the new one is handed out.
CREATE OR REPLACE FUNCTION take_lease_v1(wanted text, by text, seconds float8) RETURNS TABLE (token bigint)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    taken bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(4702111234474983745);
    INSERT INTO leases AS l (stream, token, holder, taken_at, heartbeat_at, expires_at)
    SELECT wanted, 1, by, clock_timestamp(), clock_timestamp(), clock_timestamp() + make_interval(secs => seconds)
    WHERE NOT EXISTS (SELECT FROM streams s WHERE s.stream = wanted AND s.ended_id IS NOT NULL)
    ON CONFLICT (stream) DO UPDATE SET
        token = l.token + 1, holder = excluded.holder,
        taken_at = excluded.taken_at, heartbeat_at = excluded.heartbeat_at, expires_at = excluded.expires_at
    WHERE l.holder IS NULL OR l.expires_at < clock_timestamp()
    RETURNING l.token INTO taken;
    IF taken IS NOT NULL THEN
        token := taken;
        RETURN NEXT;
    END IF;
END $$;
