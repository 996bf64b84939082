-- What the database takes on its disk, table by table with its indexes; the largest first.

SELECT c.relname AS "table", pg_size_pretty(pg_total_relation_size(c.oid)) AS size,
       pg_size_pretty(pg_indexes_size(c.oid)) AS of_which_indexes, c.reltuples::bigint AS rows_about
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
ORDER BY pg_total_relation_size(c.oid) DESC LIMIT 20;
