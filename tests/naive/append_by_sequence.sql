-- What everyone writes first: a sequence hands out the ids. They are handed out in the order of asking, but become
-- visible in the order of commits, so a reader that has seen 2 and asks for what comes after it never sees 1.

CREATE SEQUENCE naive_ids;

CREATE FUNCTION naive_append(stream text) RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO events (id, stream, seq, workspace, type, bulk, recorded_at, data)
    VALUES (nextval('naive_ids'), stream, 1, 'ws', 'job.noted', true, clock_timestamp(), '{}')
    RETURNING id
$$;
