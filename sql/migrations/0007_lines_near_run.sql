-- The tables of lines are read by people, who write WHERE run_id = '…'. An index entry for each line was a third of what
-- it costs to keep them up to date; a BRIN index with a bloom filter finds a run's lines as well, and costs nothing.

DROP INDEX run_logs_of_run;
CREATE INDEX run_logs_near_run ON run_logs USING brin (run_id text_bloom_ops) WITH (autosummarize = on);
DROP INDEX build_logs_of_build;
CREATE INDEX build_logs_near_build ON build_logs USING brin (build_id text_bloom_ops) WITH (autosummarize = on);
