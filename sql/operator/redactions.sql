-- What was erased from the log: by whom, why, and from which run or build.

SELECT id, recorded_at, data::jsonb ->> 'stream' AS stream, data::jsonb -> 'event_ids' AS event_ids,
       data::jsonb ->> 'requested_by' AS requested_by, data::jsonb ->> 'reason' AS reason
FROM events WHERE stream = 'system_log' AND NOT bulk AND type = 'event.redacted' ORDER BY id DESC;
