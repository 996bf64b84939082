-- read_committed: every statement of this session sees what was committed before it began.
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;

-- migrations_lock: this connection alone brings the schema forward, until its transaction ends.
SELECT pg_advisory_xact_lock(4702111234474983746);

-- migrations_table: the list of what was applied exists.
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp());

-- has_migrations: whether anything was ever applied.
SELECT to_regclass('schema_migrations') IS NOT NULL AS known;

-- migrations: what was applied.
SELECT name, digest FROM schema_migrations ORDER BY name;

-- migration_applied: it is on the list.
INSERT INTO schema_migrations (name, digest) VALUES (%(name)s, %(digest)s)
ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, applied_at = excluded.applied_at;
