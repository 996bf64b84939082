-- What everyone writes first: a decision expects the length of its stream. Lines move it all the time, so a cancel that
-- was decided a moment ago is refused, decided anew and refused again, for as long as the engine writes.

CREATE FUNCTION naive_append_expecting(wanted text, expected bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4702111234474983745);
    RETURN (SELECT last_seq FROM streams_with_last WHERE stream = wanted) = expected;  -- and then it would land
END $$;
