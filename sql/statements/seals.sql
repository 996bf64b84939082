-- hashed_events: what is hashed of the events after one id and up to another; docs/chain.md says what the bytes are.
SELECT id,
       int8send(id) || int8send(seq) || timestamptz_send(recorded_at) || boolsend(bulk)
       || int4send(octet_length(stream)) || int4send(octet_length(workspace)) || int4send(octet_length(type))
       || convert_to(stream || workspace || type, 'UTF8')
       || CASE WHEN redacted THEN decode(substr(data, 14, 64), 'hex') ELSE sha256(convert_to(data, 'UTF8')) END AS hashed,
       redacted
FROM (SELECT *, octet_length(data) = 79 AND data ~ '^\{"redacted":"[0-9a-f]{64}"\}$' AS redacted FROM events
      WHERE id > %(after)s AND id <= %(upto)s) AS e
ORDER BY id;

-- last_seal: how far the log is sealed; no row where nothing is.
SELECT upto, chain_hash FROM seals ORDER BY upto DESC LIMIT 1;

-- seal: the events after one id and up to another are sealed; no row where somebody else was faster.
INSERT INTO seals (upto, after, chain_hash, marks) VALUES (%(upto)s, %(after)s, %(chain_hash)s, %(marks)s)
ON CONFLICT DO NOTHING RETURNING upto;

-- seals: the seals that begin after one id or end there, and end by another, in order.
SELECT upto, after, chain_hash, marks FROM seals WHERE upto > %(after)s AND upto <= %(upto)s ORDER BY upto;

-- seal_before: the last seal that lies before an id; no row where none does.
SELECT upto, chain_hash FROM seals WHERE upto < %(id)s ORDER BY upto DESC LIMIT 1;

-- unsealed: how many events no seal covers yet, and for how long the oldest of them has waited, in seconds.
SELECT (SELECT coalesce(max(id), 0) FROM events) - sealed.upto AS events,
       coalesce((SELECT extract(epoch FROM clock_timestamp() - e.recorded_at) FROM events e
                 WHERE e.id > sealed.upto ORDER BY e.id LIMIT 1), 0)::float8 AS seconds
FROM (SELECT coalesce(max(upto), 0) AS upto FROM seals) AS sealed;

-- redactions: what was ever erased, and by which event.
SELECT id, convert_to(data, 'UTF8') AS data FROM events
WHERE stream = 'system_log' AND NOT bulk AND type = 'event.redacted' ORDER BY id;

-- redactable_events: which of these events are in a stream, and of what type they are.
SELECT id, type, bulk FROM events WHERE stream = %(stream)s AND id = ANY (%(ids)s::bigint[]) ORDER BY id;

-- repeated_by: the end of a stream whose error repeats the text of one of these events; no row where it does not.
SELECT ended.id FROM streams s JOIN events ended ON ended.id = s.ended_id
WHERE s.stream = %(stream)s
  AND EXISTS (
    SELECT FROM events said
    WHERE said.stream = s.stream AND said.id = ANY (%(ids)s::bigint[]) AND said.data::json ->> 'message' <> ''
      AND position(said.data::json ->> 'message' IN ended.data::json ->> 'error_message') > 0);

-- redact: the payloads of these events are gone, and an event says so; see redact_events_v1.
SELECT outcome, redacted_by FROM redact_events_v1(%(stream)s, %(ids)s::bigint[], %(says)s);

-- feeds_with_events: the streams of a feed that shows events of a stream between two ids: its own, and for a build
-- those of the runs that waited for it.
SELECT s.stream FROM streams s WHERE s.stream = %(stream)s
UNION ALL
SELECT r.id FROM runs r JOIN streams s ON s.stream = r.id
WHERE r.build_id = %(stream)s AND s.first_id < %(last)s AND coalesce(s.ended_id > %(first)s, true)
ORDER BY 1;

-- log_names: which log this is, and which one it was copied from.
SELECT log_id, origin FROM log;
