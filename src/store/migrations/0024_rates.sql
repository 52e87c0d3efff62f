-- Rate limits of listeners of PRE events, which any replica may ask: when each one's token bucket is full again. Written for every
-- question to a listener that has a rate limit, and for no other.

CREATE TABLE subscription_rates (
    tenant_id        uuid        NOT NULL,
    subscription_no  integer     NOT NULL,
    -- Of the subscription: a later one begins with a full bucket.
    registry_version bigint      NOT NULL,
    full_at          timestamptz NOT NULL,
    CONSTRAINT subscription_rates_pk PRIMARY KEY (tenant_id, subscription_no)
) WITH (fillfactor = 20);

CALL raise_tenant_wall();
