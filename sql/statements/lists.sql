-- run_page: of the runs that match, sorted, those after a mark; with how many match in all, where that is asked for: a
-- row without an id says so where none is left. Filters that are not given are NULL. It is planned for what is given, so
-- that of a CASE one branch is left: a sort and a mark that an index has.
WITH matching AS NOT MATERIALIZED (
    SELECT * FROM shown_runs_v1
    WHERE (%(workspace_id)s::text IS NULL OR workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR workspace_id = ANY (%(workspaces)s))
      AND (%(config_id)s::text IS NULL OR config_id = %(config_id)s)
      AND (%(build_id)s::text IS NULL OR build_id = %(build_id)s)
      AND (%(status)s::text[] IS NULL OR status = ANY(%(status)s))
      AND (%(stop_reason)s::text[] IS NULL OR stop_reason = ANY(%(stop_reason)s))
      AND (%(created_after)s::float8 IS NULL OR created_at >= to_timestamp(%(created_after)s))
      AND (%(created_before)s::float8 IS NULL OR created_at < to_timestamp(%(created_before)s))
      AND (%(q)s::text IS NULL
           OR starts_with(lower(id), lower(%(q)s))
           OR strpos(lower(summary), lower(%(q)s)) > 0
           OR strpos(lower(error_message), lower(%(q)s)) > 0
           OR config_id IN (SELECT c.id FROM configs c WHERE strpos(lower(c.name), lower(%(q)s)) > 0)
           OR (options::text <> '{}' AND EXISTS (
               SELECT FROM json_each_text(options -> 'metadata') AS m WHERE strpos(lower(m.value), lower(%(q)s)) > 0)))
      AND (%(sort)s NOT IN ('finished', '-finished') OR finished_at IS NOT NULL)
      AND (%(sort)s NOT IN ('duration', '-duration') OR duration_ms IS NOT NULL)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'finished' THEN (finished_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s)
        WHEN '-finished' THEN (finished_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'duration' THEN (duration_ms, created_id) > (%(key)s::float8::bigint, %(place)s)
        WHEN '-duration' THEN (duration_ms, created_id) < (%(key)s::float8::bigint, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at WHEN 'finished' THEN finished_at END,
             CASE %(sort)s WHEN '-created' THEN created_at WHEN '-finished' THEN finished_at END DESC,
             CASE %(sort)s WHEN 'duration' THEN duration_ms END,
             CASE %(sort)s WHEN '-duration' THEN duration_ms END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT * FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered ON true ORDER BY nth;

-- build_page: the same of builds.
WITH matching AS NOT MATERIALIZED (
    SELECT * FROM shown_builds_v1
    WHERE (%(workspace_id)s::text IS NULL OR workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR workspace_id = ANY (%(workspaces)s))
      AND (%(config_id)s::text IS NULL OR config_id = %(config_id)s)
      AND (%(status)s::text[] IS NULL OR status = ANY(%(status)s))
      AND (%(stop_reason)s::text[] IS NULL OR stop_reason = ANY(%(stop_reason)s))
      AND (%(created_after)s::float8 IS NULL OR created_at >= to_timestamp(%(created_after)s))
      AND (%(created_before)s::float8 IS NULL OR created_at < to_timestamp(%(created_before)s))
      AND (%(q)s::text IS NULL
           OR starts_with(lower(id), lower(%(q)s))
           OR strpos(lower(summary), lower(%(q)s)) > 0
           OR strpos(lower(error_message), lower(%(q)s)) > 0
           OR config_id IN (SELECT c.id FROM configs c WHERE strpos(lower(c.name), lower(%(q)s)) > 0))
      AND (%(sort)s NOT IN ('finished', '-finished') OR finished_at IS NOT NULL)
      AND (%(sort)s NOT IN ('duration', '-duration') OR duration_ms IS NOT NULL)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'finished' THEN (finished_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s)
        WHEN '-finished' THEN (finished_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'duration' THEN (duration_ms, created_id) > (%(key)s::float8::bigint, %(place)s)
        WHEN '-duration' THEN (duration_ms, created_id) < (%(key)s::float8::bigint, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at WHEN 'finished' THEN finished_at END,
             CASE %(sort)s WHEN '-created' THEN created_at WHEN '-finished' THEN finished_at END DESC,
             CASE %(sort)s WHEN 'duration' THEN duration_ms END,
             CASE %(sort)s WHEN '-duration' THEN duration_ms END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT * FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered ON true ORDER BY nth;

-- config_page: the same of configs.
WITH matching AS NOT MATERIALIZED (
    SELECT * FROM shown_configs_v1
    WHERE (%(workspace_id)s::text IS NULL OR workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR workspace_id = ANY (%(workspaces)s))
      AND (%(q)s::text IS NULL OR starts_with(lower(id), lower(%(q)s)) OR strpos(lower(name), lower(%(q)s)) > 0)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'name' THEN (name, created_id) > (%(key)s, %(place)s)
        WHEN '-name' THEN (name, created_id) < (%(key)s, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at END, CASE %(sort)s WHEN '-created' THEN created_at END DESC,
             CASE %(sort)s WHEN 'name' THEN name END, CASE %(sort)s WHEN '-name' THEN name END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT * FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered ON true ORDER BY nth;

-- document_page: the same of documents.
WITH matching AS NOT MATERIALIZED (
    SELECT * FROM documents
    WHERE (%(workspace_id)s::text IS NULL OR workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR workspace_id = ANY (%(workspaces)s))
      AND (%(q)s::text IS NULL OR starts_with(lower(id), lower(%(q)s)) OR strpos(lower(name), lower(%(q)s)) > 0)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'name' THEN (name, created_id) > (%(key)s, %(place)s)
        WHEN '-name' THEN (name, created_id) < (%(key)s, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at END, CASE %(sort)s WHEN '-created' THEN created_at END DESC,
             CASE %(sort)s WHEN 'name' THEN name END, CASE %(sort)s WHEN '-name' THEN name END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT * FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered ON true ORDER BY nth;

-- run: one run, as a list shows it.
SELECT * FROM shown_runs_v1 WHERE id = %(id)s;

-- build: one build, as a list shows it.
SELECT * FROM shown_builds_v1 WHERE id = %(id)s;

-- config: one config, as a list shows it.
SELECT * FROM shown_configs_v1 WHERE id = %(id)s;

-- document: one document, as a list shows it.
SELECT id, workspace_id, name, size, sha256, media_type, created_id, created_at FROM documents WHERE id = %(id)s;
