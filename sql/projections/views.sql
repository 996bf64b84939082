-- Views over the projections. A view is bound to its table: a rebuild makes them anew when the new tables stand, which
-- keeps who may read them. A migration that changes the columns of a table drops its view first.

CREATE OR REPLACE VIEW runs_with_lease AS
SELECT r.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM runs r LEFT JOIN leases l ON l.stream = r.id;

CREATE OR REPLACE VIEW builds_with_lease AS
SELECT b.*, l.holder AS processing_by, l.expires_at AS lease_expires_at, l.heartbeat_at
FROM builds b LEFT JOIN leases l ON l.stream = b.id;
