-- Dead letters that a caller redrove or cancelled before they were announced: what the announcement is made from, until it is published.
-- One invocation may have several, each of another attempt.
CREATE TABLE removed_dead_letters (
    tenant_id       uuid        NOT NULL,
    position        bigint      NOT NULL,
    subscription_no integer     NOT NULL,
    attempt         integer     NOT NULL,
    day             date        NOT NULL,
    dead_at         timestamptz NOT NULL,
    CONSTRAINT removed_dead_letters_pk PRIMARY KEY (tenant_id, position, subscription_no, attempt)
);

CALL raise_tenant_wall();
