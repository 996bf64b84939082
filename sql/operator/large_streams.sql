-- The runs and builds that wrote most: how much, how many events, and of which config.

SELECT s.stream, pg_size_pretty(s.bytes) AS wrote, s.events, c.workspace_id, c.name AS config,
       coalesce(r.created_at, b.created_at) AS created_at
FROM (SELECT stream, sum(bytes) AS bytes, max(last_seq) AS events FROM segments GROUP BY stream) AS s
LEFT JOIN runs r ON r.id = s.stream LEFT JOIN builds b ON b.id = s.stream
JOIN configs c ON c.id = coalesce(r.config_id, b.config_id)
ORDER BY s.bytes DESC LIMIT 20;
