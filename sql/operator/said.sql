-- Which lines of output contain a text, newest first, as for a secret that has leaked; say which: -v text=…
-- It reads every line that is kept. `ade log redact STREAM ID… --reason …` erases what it finds.

SELECT stream, id, recorded_at, type, left(data, 200) AS data
FROM events WHERE bulk AND strpos(data, :'text') > 0 ORDER BY id DESC;
