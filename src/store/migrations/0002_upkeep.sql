-- What is announced in a tenant's own log, and duties that one replica at a time does for the whole database.

-- A change that was made and is to be told of: written in the change's own transaction, published by the tenant's dispatch
-- owner, deleted then. registry_version is that of the change, so the key's order is that of the changes.
CREATE TABLE announcements (
    tenant_id        uuid        NOT NULL,
    registry_version bigint      NOT NULL,
    announcement_id  uuid        NOT NULL,
    event_type       text        NOT NULL,
    subject          text        NOT NULL,
    data             text        NOT NULL,
    created_at       timestamptz NOT NULL,
    CONSTRAINT announcements_pk PRIMARY KEY (tenant_id, registry_version, announcement_id)
);

-- Control (not distributed): who does a duty of the whole database, and when it was last done.
CREATE TABLE duties (
    name       text        NOT NULL CONSTRAINT duties_pk PRIMARY KEY,
    holder     uuid        NOT NULL,
    held_until timestamptz NOT NULL,
    done_at    timestamptz
);

-- Finds what retention takes with a position, and what is due, without the rows that stay.
CREATE INDEX request_ids_by_end ON request_ids (expires_at);
