-- The tables of lines, for people with SQL. Caught up by the projector; the API reads the log itself.
-- As json, though jsonb would take a fifth less: a number that jsonb cannot hold (1e131073) would stop the projection.

CREATE OR REPLACE FUNCTION project_run_logs_v1(after bigint, upto bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO run_logs (id, run_id, created_at, stream, level, message)
    SELECT id, stream, recorded_at, d ->> 'stream', d ->> 'level', d ->> 'message'
    FROM (SELECT id, stream, recorded_at, data::json AS d FROM events
          WHERE id > after AND id <= upto AND bulk AND stream LIKE 'run\_%' OFFSET 0) AS line
    WHERE json_typeof(d -> 'message') = 'string';
END $$;

CREATE OR REPLACE FUNCTION project_build_logs_v1(after bigint, upto bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO build_logs (id, build_id, created_at, stream, level, step, message)
    SELECT id, stream, recorded_at, d ->> 'stream', d ->> 'level', d ->> 'step', d ->> 'message'
    FROM (SELECT id, stream, recorded_at, data::json AS d FROM events
          WHERE id > after AND id <= upto AND bulk AND stream LIKE 'build\_%' OFFSET 0) AS line
    WHERE json_typeof(d -> 'message') = 'string';
END $$;

-- Moves one caught-up projection forward by at most so many ids; what was done and the checkpoint commit together.
CREATE OR REPLACE FUNCTION catch_up_v1(name text, most bigint) RETURNS TABLE (reached bigint, head bigint)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT c.id INTO reached FROM checkpoints c WHERE c.projection = name FOR UPDATE;
    SELECT coalesce(max(e.id), 0) INTO head FROM events e;
    IF head > reached THEN
        CASE name
            WHEN 'run_logs' THEN PERFORM project_run_logs_v1(reached, least(head, reached + most));
            WHEN 'build_logs' THEN PERFORM project_build_logs_v1(reached, least(head, reached + most));
        END CASE;
        reached := least(head, reached + most);
        UPDATE checkpoints c SET id = reached WHERE c.projection = name;
    END IF;
    RETURN NEXT;
END $$;
