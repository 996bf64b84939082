-- What is queued, and what each waits for: the oldest first, with the state of the build that a run is bound to.
-- Nothing beside `build`, `disk` or `safe_mode` in `waits_for`: it waits for a free slot of a worker, or for a worker.

SELECT r.id, r.workspace_id, clock_timestamp() - r.created_at AS queued_for, r.waiting_for AS waits_for,
       r.build_id, b.status AS build_status, r.attempt AS attempts_so_far,
       greatest(r.retry_at - clock_timestamp(), interval '0') AS not_begun_for
FROM runs r LEFT JOIN builds b ON b.id = r.build_id WHERE r.status = 'queued'
UNION ALL
SELECT b.id, b.workspace_id, clock_timestamp() - b.created_at, 'worker', NULL, NULL, b.attempt,
       greatest(b.retry_at - clock_timestamp(), interval '0')
FROM builds b WHERE b.status = 'queued'
ORDER BY queued_for DESC;
