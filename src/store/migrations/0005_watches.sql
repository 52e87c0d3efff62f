-- What an UpdateWatch on any replica and a resume by watch need to know of open watches.

-- The filters of a watch, version by version; written by whoever changes them, put into effect by the replica that holds the
-- stream. A control table: small, local, read across tenants by the pulse.
CREATE TABLE watches (
    tenant_id      uuid        NOT NULL,
    watch_id       uuid        NOT NULL,
    filter_version bigint      NOT NULL,
    -- Who holds the stream.
    replica_id     uuid        NOT NULL,
    -- An encoded carillon.v1.WatchRequest with nothing but its filters.
    filters        bytea       NOT NULL,
    -- The version selects the events after this position; null for as long as it is not in effect.
    position       bigint,
    -- A date not after that of the next event.
    day            date,
    -- The stream has ended by then, and nobody resumes it any more.
    expires_at     timestamptz NOT NULL,
    CONSTRAINT watches_pk PRIMARY KEY (tenant_id, watch_id, filter_version),
    CONSTRAINT watches_place_whole CHECK ((position IS NULL) = (day IS NULL))
);
-- What a replica has to put into effect; empty but for moments.
CREATE INDEX watches_pending ON watches (replica_id, watch_id) WHERE position IS NULL;
CREATE INDEX watches_by_expiry ON watches (expires_at);
