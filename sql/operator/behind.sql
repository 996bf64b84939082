-- How far what follows from the log is behind it, in events: the tables of lines, the log files, the seals.
-- 0 or a little that changes: all is well. A number that only grows: no projector runs, or it fails; see its log.

SELECT p.what, p.reached, h.head - p.reached AS events_behind
FROM (SELECT coalesce(max(id), 0) AS head FROM events) AS h
CROSS JOIN (SELECT projection AS what, id AS reached FROM checkpoints
            UNION ALL
            SELECT 'seals', coalesce(max(upto), 0) FROM seals) AS p
ORDER BY events_behind DESC, p.what;
