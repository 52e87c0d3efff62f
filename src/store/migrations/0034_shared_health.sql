-- How a receiver of PRE events does is what all replicas know of it together: what it answers to one is read by the others before they
-- ask, and every change is made to the row as it is then, under its lock.

ALTER TABLE subscription_health
    -- Until when it asked not to be called (Retry-After).
    ADD COLUMN paused_until timestamptz,
    -- Until when the one question that finds out whether it is well again may take; null where there is none.
    ADD COLUMN probe_until timestamptz,
    -- Grows with each of these changes, so that a replica never goes back to what it has read before.
    ADD COLUMN revision bigint NOT NULL DEFAULT 0;
