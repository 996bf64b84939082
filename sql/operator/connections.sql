-- Who is connected to this database, and what for: `waits_for` a lock, and `blocked_by` whom. An append that waits for
-- longer than a moment, or a transaction that is open for minutes, slows everybody.

SELECT pid, application_name, client_addr, state, clock_timestamp() - xact_start AS transaction_for,
       CASE WHEN wait_event_type = 'Lock' THEN wait_event END AS waits_for, pg_blocking_pids(pid) AS blocked_by,
       left(regexp_replace(query, '\s+', ' ', 'g'), 100) AS query
FROM pg_stat_activity WHERE datname = current_database()
ORDER BY xact_start NULLS LAST;
