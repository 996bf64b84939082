-- A rebuild fills tables in schema `next` beside the live ones, then takes their place.

CREATE OR REPLACE FUNCTION rebuild_begin_v1(tables text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t       text;
    granted record;
BEGIN
    DROP SCHEMA IF EXISTS next CASCADE;
    CREATE SCHEMA next;
    FOREACH t IN ARRAY tables LOOP
        EXECUTE format('CREATE TABLE next.%I (LIKE public.%I INCLUDING ALL)', t, t);
        FOR granted IN  -- LIKE copies everything but who may read it
            SELECT a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
            FROM pg_class c, aclexplode(c.relacl) AS a
            WHERE c.oid = format('public.%I', t)::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON next.%I TO %s', granted.privilege_type, t, granted.grantee);
        END LOOP;
    END LOOP;
END $$;

-- One page of a rebuild. The projections name their tables without a schema, so the search path decides where they write.
CREATE OR REPLACE FUNCTION rebuild_page_v1(projection text, after bigint, upto bigint) RETURNS void LANGUAGE plpgsql
SET search_path = next, public AS $$
BEGIN
    IF to_regclass(format('next.%I', projection)) IS NULL THEN  -- else it would write to the live table
        RAISE EXCEPTION 'the rebuild of % has lost its tables', projection;
    END IF;
    CASE projection
        WHEN 'configs' THEN PERFORM project_configs_v1(after, upto);
        WHEN 'builds' THEN PERFORM project_builds_v1(after, upto);
        WHEN 'runs' THEN PERFORM project_runs_v1(after, upto);
        WHEN 'run_logs' THEN PERFORM project_run_logs_v1(after, upto);
        WHEN 'build_logs' THEN PERFORM project_build_logs_v1(after, upto);
    END CASE;
END $$;

-- The last page and the swap, while nothing is appended. The old tables go to schema `past`, with what depends on them:
-- the caller makes the views anew and then ends the rebuild, in the same transaction.
CREATE OR REPLACE FUNCTION rebuild_swap_v1(projection text, tables text[], after bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    head bigint;
    t    text;
BEGIN
    PERFORM pg_advisory_xact_lock(4702111234474983745);
    SET LOCAL lock_timeout = '100ms';  -- all appends wait for as long as we do
    SELECT coalesce(max(id), 0) INTO head FROM events;
    -- A caught-up projection keeps its checkpoint row locked while it works: taken here, the projector waits for us.
    PERFORM FROM checkpoints c WHERE c.projection = rebuild_swap_v1.projection FOR UPDATE;
    PERFORM rebuild_page_v1(projection, after, head);
    DROP SCHEMA IF EXISTS past CASCADE;
    CREATE SCHEMA past;
    FOREACH t IN ARRAY tables LOOP
        EXECUTE format('ALTER TABLE public.%I SET SCHEMA past', t);
        EXECUTE format('ALTER TABLE next.%I SET SCHEMA public', t);
    END LOOP;
    UPDATE checkpoints c SET id = head WHERE c.projection = rebuild_swap_v1.projection;
    DROP SCHEMA next;
    RETURN head;
END $$;

-- The old tables go, if nobody's own view stands on them; the indexes of the new ones take their names.
CREATE OR REPLACE FUNCTION rebuild_end_v1(tables text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t text;
    i record;
BEGIN
    FOREACH t IN ARRAY tables LOOP
        FOR i IN
            SELECT made.indexname AS made, old.indexname AS name FROM pg_indexes made JOIN pg_indexes old
                ON substring(old.indexdef FROM ' USING .*') = substring(made.indexdef FROM ' USING .*')
            WHERE made.schemaname = 'public' AND made.tablename = t AND old.schemaname = 'past' AND old.tablename = t
              AND made.indexname <> old.indexname
        LOOP
            EXECUTE format('ALTER INDEX public.%I RENAME TO %I', i.made, i.name);
        END LOOP;
        EXECUTE format('DROP TABLE past.%I', t);
    END LOOP;
    DROP SCHEMA past;
END $$;

-- How a live table differs from the one in schema `next`, by its primary key: where a side has no such row it is NULL,
-- else it is the row's columns as text. `most` of them are told, and how many there are. Where `after` and `upto` are
-- given, only the rows with these ids.
CREATE OR REPLACE FUNCTION compare_table_v1(name text, after bigint, upto bigint, most int)
RETURNS TABLE (key text, live json, folded json, differences bigint) LANGUAGE plpgsql STABLE AS $$
DECLARE
    of_table regclass := format('next.%I', name)::regclass;
    wanted   text := CASE WHEN after IS NULL THEN 'true' ELSE format('id > %s AND id <= %s', after, upto) END;
    keys     text;
    in_live  text;
    in_fold  text;
BEGIN
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO keys
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = of_table AND i.indisprimary;
    SELECT string_agg(format('%1$L, l.%1$I::text', a.attname), ', ' ORDER BY a.attnum),
           string_agg(format('%1$L, f.%1$I::text', a.attname), ', ' ORDER BY a.attnum) INTO in_live, in_fold
    FROM pg_attribute a WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped;
    -- As text: a column of type json has no equality, and nothing is as strict.
    RETURN QUERY EXECUTE format(
        'SELECT concat_ws('' '', %2$s),
                CASE WHEN l::text IS NOT NULL THEN json_build_object(%4$s) END,
                CASE WHEN f::text IS NOT NULL THEN json_build_object(%5$s) END, count(*) OVER ()
         FROM (SELECT * FROM public.%1$I WHERE %3$s) AS l FULL JOIN (SELECT * FROM next.%1$I WHERE %3$s) AS f USING (%2$s)
         WHERE l::text IS DISTINCT FROM f::text ORDER BY %2$s LIMIT $1', name, keys, wanted, in_live, in_fold) USING most;
END $$;
