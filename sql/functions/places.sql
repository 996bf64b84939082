-- Places in a stream: an event by its number or by time, however long the stream is. By bisection: ids are dense, so each
-- step is one look into an index.

-- The event of a stream with this number: its id, and the number again. What lies before the first event is the first one,
-- what lies behind the last one is the place where the next one may come.
CREATE OR REPLACE FUNCTION place_of_seq_v1(of_stream text, wanted bigint) RETURNS TABLE (id bigint, seq bigint)
LANGUAGE plpgsql STABLE ROWS 1 AS $$
DECLARE
    low     bigint;
    middle  bigint;
    high    bigint;
    segment record;
BEGIN
    SELECT s.first_id, s.last_id, s.last_seq INTO low, high, seq FROM streams_with_last s WHERE s.stream = of_stream;
    IF wanted > seq THEN
        id := high + 1;
        seq := seq + 1;
        RETURN NEXT;
        RETURN;
    END IF;
    seq := greatest(wanted, 1);
    WHILE low <= high LOOP
        middle := (low + high) / 2;
        SELECT g.last_id, g.last_seq - (g.last_id - g.first_id) AS first_seq, g.last_seq INTO segment
        FROM segments g WHERE g.stream = of_stream AND g.last_id >= middle ORDER BY g.last_id LIMIT 1;
        IF seq < segment.first_seq THEN
            high := middle - 1;
        ELSIF seq > segment.last_seq THEN
            low := segment.last_id + 1;
        ELSE
            id := segment.last_id - (segment.last_seq - seq);
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
END $$;

-- The first event of a stream with this id or a later one; behind the last one as above.
CREATE OR REPLACE FUNCTION place_since_v1(of_stream text, since bigint) RETURNS TABLE (id bigint, seq bigint)
LANGUAGE sql STABLE ROWS 1 AS $$
    (SELECT greatest(g.first_id, since), g.last_seq - (g.last_id - greatest(g.first_id, since))
     FROM segments g WHERE g.stream = of_stream AND g.last_id >= since ORDER BY g.last_id LIMIT 1)
    UNION ALL
    (SELECT newest.last_id + 1, newest.last_seq + 1
     FROM (SELECT * FROM segments g WHERE g.stream = of_stream ORDER BY g.last_id DESC LIMIT 1) AS newest
     WHERE newest.last_id < since)
$$;

-- The first id of the log, of those from `low` to `high`, that was recorded at this time or later; `high` + 1 where none
-- was. Time goes with the ids but where somebody has set the clock back.
CREATE OR REPLACE FUNCTION id_since_v1(moment timestamptz, low bigint, high bigint) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    middle bigint;
BEGIN
    WHILE low <= high LOOP
        middle := (low + high) / 2;
        IF (SELECT e.recorded_at FROM events e WHERE e.id = middle) < moment THEN
            low := middle + 1;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    RETURN low;
END $$;
