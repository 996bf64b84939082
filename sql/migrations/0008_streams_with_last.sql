-- What changes with each append moves from the row of the stream to the segment that the append adds: a row that is
-- updated thousands of times leaves its dead versions in the way of the next look-up for as long as anybody holds a
-- snapshot (a single append took four times as long after a minute). What is left in `streams` changes with control
-- events alone.

-- Nobody appends until this is done, and nobody by the function of before: what it would write had no segment.
SELECT pg_advisory_xact_lock(4702111234474983745);
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE proname = 'append_events_v1' AND pronamespace = current_schema()::regnamespace LOOP
        EXECUTE format('DROP FUNCTION %s', f);
    END LOOP;
END $$;
INSERT INTO segments
SELECT stream, min(id), max(id), sum(octet_length(data))
FROM (SELECT stream, id, data, id - row_number() OVER (PARTITION BY stream ORDER BY id) AS island FROM events e
      WHERE NOT EXISTS (SELECT FROM segments g WHERE g.stream = e.stream AND e.id BETWEEN g.first_id AND g.last_id)) AS e
GROUP BY stream, island, id / 1000;

ALTER TABLE segments
    ADD COLUMN last_seq bigint,
    ADD COLUMN token    bigint,   -- the lease under which bulk events were appended last, up to here,
    ADD COLUMN position bigint;   -- and how many: recognises what is sent again
UPDATE segments g SET last_seq = e.seq FROM events e WHERE e.id = g.last_id;
UPDATE segments g SET token = l.token, position = s.position
FROM streams s JOIN leases l ON l.stream = s.stream WHERE g.stream = s.stream AND g.last_id = s.last_id;
ALTER TABLE segments ALTER COLUMN last_seq SET NOT NULL;

ALTER TABLE streams DROP COLUMN last_id, DROP COLUMN last_seq, DROP COLUMN bytes, DROP COLUMN position;
ALTER TABLE streams RESET (fillfactor);
COMMENT ON TABLE streams IS 'Where each stream begins and ends, and its newest control event, which expectations are about.';
