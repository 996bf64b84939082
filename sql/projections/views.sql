-- Views over the projections. They are made anew with every swap of a rebuild, because a view is bound to its table.

DROP VIEW IF EXISTS runs_with_lease;
CREATE VIEW runs_with_lease AS
SELECT r.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM runs r LEFT JOIN leases l ON l.stream = r.id;

DROP VIEW IF EXISTS builds_with_lease;
CREATE VIEW builds_with_lease AS
SELECT b.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM builds b LEFT JOIN leases l ON l.stream = b.id;
