-- make_key: the key is on record, and the log says so.
SELECT make_key_v1(%(id)s, %(name)s, %(sha256)s, %(role)s, %(workspaces)s, to_timestamp(%(expires)s::float8), %(says)s) AS id;

-- revoke_key: the key and its sessions are dead, and the log says so; NULL where there is none that lives.
SELECT revoke_key_v1(%(id)s, %(says)s) AS id;

-- keys: every key that was ever made, newest first.
SELECT id, name, role, workspaces, created_at, expires_at, revoked_at, last_used_at,
       CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at < clock_timestamp() THEN 'expired' ELSE 'live' END AS state
FROM api_keys WHERE parent IS NULL AND (%(id)s::text IS NULL OR id = %(id)s) ORDER BY created_at DESC;

-- live_keys: of these keys and sessions those that may be used now, and for how many seconds yet.
SELECT id, coalesce(parent, id) AS key_id, sha256, role, workspaces,
       extract(epoch FROM expires_at - clock_timestamp())::float8 AS left_s
FROM api_keys
WHERE id = ANY(%(ids)s) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- used_keys: these were used just now.
UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = ANY(%(ids)s);

-- open_session: a session of a key that lives is on record; until when. No row where the key is dead.
INSERT INTO api_keys (id, parent, name, sha256, role, workspaces, expires_at)
SELECT %(id)s, id, name, %(sha256)s, role, workspaces, least(expires_at, clock_timestamp() + make_interval(secs => %(seconds)s))
FROM api_keys
WHERE id = %(parent)s AND parent IS NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
FOR SHARE
RETURNING expires_at;

-- forget_sessions: sessions that have ended are gone, and of this key the oldest beyond so many.
DELETE FROM api_keys WHERE parent IS NOT NULL AND (expires_at < clock_timestamp() OR id IN (
    SELECT id FROM api_keys WHERE parent = %(parent)s ORDER BY created_at DESC OFFSET %(most)s));

-- close_session: the session is gone.
DELETE FROM api_keys WHERE id = %(id)s AND parent IS NOT NULL;

-- workspace_of: the workspace of a run, build, config, document or artifact; no row for anything else.
SELECT workspace FROM streams WHERE stream = %(id)s AND workspace <> ''
UNION ALL SELECT workspace_id FROM documents WHERE id = %(id)s
UNION ALL SELECT r.workspace_id FROM artifacts a JOIN runs r ON r.id = a.run_id WHERE a.id = %(id)s;
