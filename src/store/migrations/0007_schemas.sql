-- What a further version of an event type's schema must keep: 0 nothing, 1 backward, 2 forward, 3 full.
ALTER TABLE event_types ADD COLUMN compatibility smallint NOT NULL DEFAULT 0
    CONSTRAINT event_types_compatibility_known CHECK (compatibility BETWEEN 0 AND 3);

-- The schema version that a subscription is pinned to; 0 follows the latest.
ALTER TABLE subscriptions ADD COLUMN schema_version integer NOT NULL DEFAULT 0
    CONSTRAINT subscriptions_schema_version_known CHECK (schema_version >= 0);
