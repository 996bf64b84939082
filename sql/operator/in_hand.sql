-- Who works on what: `silent_for` is since when nothing was heard of the worker, `lost` that its lease has run out.
-- What is lost is queued again or ended within a second by any worker that runs; if it stays here, none does.

SELECT w.id, w.status, w.attempt, l.holder AS worker, clock_timestamp() - l.heartbeat_at AS silent_for,
       l.expires_at - clock_timestamp() AS lease_left,
       l.holder IS NULL OR l.expires_at < clock_timestamp() AS lost,
       w.cancel_requested_at IS NOT NULL AS cancel_asked, clock_timestamp() - w.started_at AS since_first_start
FROM (SELECT id, status, attempt, cancel_requested_at, started_at FROM runs WHERE status = 'running'
      UNION ALL
      SELECT id, status, attempt, cancel_requested_at, started_at FROM builds WHERE status = 'building') AS w
LEFT JOIN leases l ON l.stream = w.id
ORDER BY lost DESC, silent_for DESC NULLS FIRST;
