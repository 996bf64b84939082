-- Lost work that is tried again is begun again after a pause. It holds no slot meanwhile, and survives every restart.

DROP VIEW IF EXISTS runs_with_lease, builds_with_lease;  -- they are made again with the functions
ALTER TABLE runs ADD COLUMN retry_at timestamptz;
ALTER TABLE builds ADD COLUMN retry_at timestamptz;
