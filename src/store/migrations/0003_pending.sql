-- Events that are accepted and not in the log: delayed ones, and PRE events whose listeners are asked.

-- What a subscription to a PRE event type says of its veto; null for POST types.
ALTER TABLE subscriptions
    -- 1 FAIL, 2 IGNORE
    ADD COLUMN pre_failure_policy smallint CONSTRAINT subscriptions_pre_failure_policy_known CHECK (pre_failure_policy IN (1, 2)),
    ADD COLUMN pre_priority       integer  CONSTRAINT subscriptions_pre_priority_range CHECK (pre_priority BETWEEN -1000 AND 1000),
    -- JSON pointers that its answer may change.
    ADD COLUMN pre_enrich_paths   text[]   CONSTRAINT subscriptions_pre_enrich_paths_count CHECK (cardinality(pre_enrich_paths) <= 16);

-- One accepted event that has no position. It leaves by one statement: deleted where it is committed, or final as it is.
CREATE TABLE pending_events (
    tenant_id      uuid        NOT NULL,
    event_id       uuid        NOT NULL,
    -- 1 SCHEDULED (waits for its time), 2 GATED (its listeners are asked), 3 ABORTED, 4 CANCELLED
    state          smallint    NOT NULL CONSTRAINT pending_events_state_known CHECK (state BETWEEN 1 AND 4),
    -- Grows with every owner: what a former owner writes affects no row.
    token          bigint      NOT NULL,
    -- SCHEDULED: its time. GATED: when its owner's lease ends. Null for final ones.
    due_at         timestamptz,
    -- GATED: when the listeners must have answered.
    deadline_at    timestamptz,
    -- When a publisher last asked for it by another replica than its owner.
    attached_at    timestamptz,
    -- Time that the listeners get, milliseconds.
    pre_timeout_ms integer     NOT NULL,
    -- ABORTED: 1 rejected, 2 a listener failed, 3 deadline, 4 the publisher went away, 5 it cannot be published any more
    abort_reason   smallint,
    abort_message  text,
    -- Final ones are deleted after this time.
    expires_at     timestamptz,
    created_at     timestamptz NOT NULL,
    -- As in `events`.
    event_type     text        NOT NULL,
    schema_version integer     NOT NULL,
    source         text        NOT NULL,
    subject        text,
    event_time     timestamptz NOT NULL,
    content_type   text,
    extensions     bytea       NOT NULL,
    data_kind      smallint    NOT NULL,
    data           bytea       NOT NULL,
    matched        integer[]   NOT NULL,
    refused        integer[]   NOT NULL,
    root_id        uuid        NOT NULL,
    cause_event_id uuid,
    cause_subscription_no integer,
    depth          integer     NOT NULL,
    lineage        integer[]   NOT NULL,
    CONSTRAINT pending_events_pk PRIMARY KEY (tenant_id, event_id)
);
-- The pulse asks for the first of all; an owner claims a tenant's in this order.
CREATE INDEX pending_events_by_due ON pending_events (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX pending_events_by_tenant_due ON pending_events (tenant_id, state, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX pending_events_by_expiry ON pending_events (expires_at) WHERE expires_at IS NOT NULL;

-- What a listener of a pending event answered. Kept with an aborted event; those of a committed one are its outcomes.
CREATE TABLE pending_verdicts (
    tenant_id       uuid        NOT NULL,
    event_id        uuid        NOT NULL,
    subscription_no integer     NOT NULL,
    -- 1 SUCCEEDED, 2 REJECTED, 3 FAILED, 4 CANCELLED, 5 SKIPPED
    verdict         smallint    NOT NULL CONSTRAINT pending_verdicts_verdict_known CHECK (verdict BETWEEN 1 AND 5),
    attempt         integer     NOT NULL,
    outcome_class   smallint    NOT NULL,
    status_code     smallint    NOT NULL,
    duration_us     integer     NOT NULL,
    started_at      timestamptz NOT NULL,
    excerpt         text,
    message         text        NOT NULL,
    -- The JSON merge patch of a listener that succeeded.
    patch           text,
    CONSTRAINT pending_verdicts_pk PRIMARY KEY (tenant_id, event_id, subscription_no)
);
