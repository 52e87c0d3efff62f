-- What a delivery policy says beyond retries: order within a key.

ALTER TABLE subscriptions
    -- CEL expression over the event; null where events are independent.
    ADD COLUMN ordering_key text CONSTRAINT subscriptions_ordering_key_length CHECK (octet_length(ordering_key) BETWEEN 1 AND 4096),
    -- 1 skip, 2 block
    ADD COLUMN ordering_on_dead_letter smallint CONSTRAINT subscriptions_on_dead_letter_known CHECK (ordering_on_dead_letter IN (1, 2));

-- Digest of the ordering key's value; null where the invocation is in no order.
ALTER TABLE deferred_invocations ADD COLUMN ordering_key uuid;
ALTER TABLE dead_letters ADD COLUMN ordering_key uuid;
-- Whether something earlier of the same key holds an invocation up.
CREATE INDEX deferred_invocations_by_key ON deferred_invocations (tenant_id, subscription_no, ordering_key, position)
    WHERE ordering_key IS NOT NULL;
CREATE INDEX dead_letters_by_key ON dead_letters (tenant_id, subscription_no, ordering_key, position)
    WHERE ordering_key IS NOT NULL;
