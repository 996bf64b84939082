-- Appends one fact about the deployment itself to `system_log`, as part of whatever transaction it is about; its id.
CREATE OR REPLACE FUNCTION append_fact_v1(fact text, says text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT first_id FROM append_events_v2(
        ARRAY[1], ARRAY['system_log'], ARRAY[''], ARRAY[NULL::bigint], ARRAY[NULL::bigint], ARRAY[NULL::bigint],
        ARRAY[1], ARRAY[octet_length(says)::bigint], ARRAY[1], ARRAY[false], ARRAY[NULL::text], ARRAY[''],
        ARRAY[1], ARRAY[0], ARRAY[1], ARRAY[fact], ARRAY[false], says)
$$;
