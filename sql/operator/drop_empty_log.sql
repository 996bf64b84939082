-- Takes away the schema of a log that holds no event, so that a backup can take its place. Nothing is lost: all tables
-- follow from the events. What somebody else made in this database stays; where it stands on one of ours, this fails.

DROP VIEW IF EXISTS runs_with_lease, builds_with_lease, shown_runs_v1, shown_builds_v1, shown_configs_v1;
DO $$
DECLARE
    f record;
BEGIN
    FOR f IN
        SELECT p.prorettype = 'trigger'::regtype AS guards, string_agg(p.oid::regprocedure::text, ', ') AS ours
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '_v[0-9]+$'  -- the name of every function of ours
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')  -- and of no extension's
        GROUP BY 1 ORDER BY 1 DESC
    LOOP
        -- The guards first, with their triggers; then the others, some of which return rows of the tables below.
        EXECUTE 'DROP FUNCTION ' || f.ours || CASE WHEN f.guards THEN ' CASCADE' ELSE '' END;
    END LOOP;
END $$;
DROP VIEW IF EXISTS streams_with_last;
DROP TABLE IF EXISTS log, events, streams, segments, seals, leases, append_keys, checkpoints, schema_migrations,
    workspaces, configs, config_versions, documents, safe_mode, builds, runs, artifacts, run_logs, build_logs, api_keys;
