-- What a delivery policy says beyond retries: order within a key, rate, circuit breaker, automatic disabling, and the replay of what was missed.

ALTER TABLE subscriptions
    -- CEL expression over the event; null where events are independent.
    ADD COLUMN ordering_key text CONSTRAINT subscriptions_ordering_key_length CHECK (octet_length(ordering_key) BETWEEN 1 AND 4096),
    -- 1 skip, 2 block
    ADD COLUMN ordering_on_dead_letter smallint CONSTRAINT subscriptions_on_dead_letter_known CHECK (ordering_on_dead_letter IN (1, 2)),
    -- Both null where there is no limit.
    ADD COLUMN rate_count integer CONSTRAINT subscriptions_rate_count_range CHECK (rate_count BETWEEN 1 AND 1000000),
    ADD COLUMN rate_interval_ms bigint CONSTRAINT subscriptions_rate_interval_range CHECK (rate_interval_ms BETWEEN 100 AND 86400000),
    -- Both null where there is no breaker.
    ADD COLUMN circuit_failures integer CONSTRAINT subscriptions_circuit_failures_range CHECK (circuit_failures BETWEEN 1 AND 10000),
    ADD COLUMN circuit_open_ms bigint CONSTRAINT subscriptions_circuit_open_range CHECK (circuit_open_ms BETWEEN 100 AND 3600000),
    -- The position after which it matches nothing; null while it is active.
    ADD COLUMN inactive_from bigint,
    -- Null for the default.
    ADD COLUMN auto_disable_ms bigint CONSTRAINT subscriptions_auto_disable_range CHECK (auto_disable_ms BETWEEN 1000 AND 7776000000);

-- Digest of the ordering key's value; null where the invocation is in no order.
ALTER TABLE deferred_invocations ADD COLUMN ordering_key uuid;
ALTER TABLE dead_letters ADD COLUMN ordering_key uuid;
-- Whether something earlier of the same key holds an invocation up.
CREATE INDEX deferred_invocations_by_key ON deferred_invocations (tenant_id, subscription_no, ordering_key, position)
    WHERE ordering_key IS NOT NULL;
CREATE INDEX dead_letters_by_key ON dead_letters (tenant_id, subscription_no, ordering_key, position)
    WHERE ordering_key IS NOT NULL;

-- How receivers do that do not do well: written by the owner of the tenant when a circuit changes, and once a minute at most where
-- nothing but failures comes. It is about the subscription at one registry version; a later one begins anew.
CREATE TABLE subscription_health (
    tenant_id        uuid        NOT NULL,
    subscription_no  integer     NOT NULL,
    registry_version bigint      NOT NULL,
    -- 1 closed, 2 open, 3 half open
    circuit          smallint    NOT NULL CONSTRAINT subscription_health_circuit_known CHECK (circuit IN (1, 2, 3)),
    since            timestamptz,
    failures         integer     NOT NULL,
    failing_since    timestamptz,
    CONSTRAINT subscription_health_pk PRIMARY KEY (tenant_id, subscription_no)
);

-- Replays under way: up to `position` what the subscription missed is deferred, up to `up_to` it will be. Written by the change that
-- begins or ends it, and by the owner of the tenant.
CREATE TABLE replays (
    tenant_id       uuid    NOT NULL,
    subscription_no integer NOT NULL,
    position        bigint  NOT NULL,
    -- The event's at `position`, or earlier.
    day             date    NOT NULL,
    up_to           bigint  NOT NULL,
    CONSTRAINT replays_pk PRIMARY KEY (tenant_id, subscription_no)
);
