-- Every time that safe mode was switched, by whom and why; the newest row is how it stands, unless ADE_SAFE_MODE forces it.

SELECT recorded_at, (data::jsonb ->> 'enabled')::boolean AS enabled, data::jsonb ->> 'requested_by' AS requested_by,
       data::jsonb ->> 'reason' AS reason
FROM events WHERE stream = 'system_log' AND NOT bulk AND type = 'safe_mode.changed' ORDER BY id DESC;
