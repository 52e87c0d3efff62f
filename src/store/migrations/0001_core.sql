-- The log, the registry, the dispatch state and access. Every tenant table's key starts with tenant_id (its distribution
-- key when one Postgres is outgrown); control tables that coordinate replicas or find the tenant of a credential are small and local.

-- ---------------------------------------------------------------- control (not distributed)

CREATE TABLE settings (
    name  text  NOT NULL CONSTRAINT settings_pk PRIMARY KEY,
    value bytea NOT NULL
);

CREATE TABLE tenants (
    tenant_id    uuid        NOT NULL CONSTRAINT tenants_pk PRIMARY KEY,
    slug         text        NOT NULL CONSTRAINT tenants_slug_unique UNIQUE
                             CONSTRAINT tenants_slug_shape CHECK (slug ~ '^[a-z][a-z0-9-]{0,62}$'),
    display_name text        NOT NULL CONSTRAINT tenants_display_name_length CHECK (char_length(display_name) <= 128),
    created_at   timestamptz NOT NULL
);

CREATE TABLE api_keys (
    api_key_id   uuid        NOT NULL CONSTRAINT api_keys_pk PRIMARY KEY,
    tenant_id    uuid        NOT NULL CONSTRAINT api_keys_tenant_fk REFERENCES tenants,
    app_id       uuid,
    role         smallint    NOT NULL CONSTRAINT api_keys_role_known CHECK (role BETWEEN 1 AND 4),
    secret_hash  bytea       NOT NULL CONSTRAINT api_keys_secret_hash_length CHECK (octet_length(secret_hash) = 32),
    display_name text        NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, api_key_id DESC);

CREATE TABLE publisher_identities (
    publisher_identity_id uuid        NOT NULL CONSTRAINT publisher_identities_pk PRIMARY KEY,
    tenant_id             uuid        NOT NULL CONSTRAINT publisher_identities_tenant_fk REFERENCES tenants,
    subject               text        NOT NULL CONSTRAINT publisher_identities_subject_unique UNIQUE,
    event_types           text[]      NOT NULL,
    created_at            timestamptz NOT NULL
);
CREATE INDEX publisher_identities_by_tenant ON publisher_identities (tenant_id, subject);

-- One row per dispatch shard: who owns it. The token grows with every change of owner and fences the former one.
CREATE TABLE shard_leases (
    shard      integer     NOT NULL CONSTRAINT shard_leases_pk PRIMARY KEY,
    owner      uuid,
    token      bigint      NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL
);

-- Live replicas, so that each takes its fair share of shards.
CREATE TABLE replicas (
    replica_id uuid        NOT NULL CONSTRAINT replicas_pk PRIMARY KEY,
    expires_at timestamptz NOT NULL
);

-- ---------------------------------------------------------------- tenant: registry

-- The head of a tenant's log. Publishing updates it and so holds its lock until commit: positions are gapless and in commit
-- order. registry_version changes under the same lock with everything that changes what matches. The fill factor leaves
-- room for heap-only updates, which leave no dead index entries.
CREATE TABLE tenant_heads (
    tenant_id              uuid        NOT NULL CONSTRAINT tenant_heads_pk PRIMARY KEY,
    position               bigint      NOT NULL DEFAULT 0,
    registry_version       bigint      NOT NULL DEFAULT 0,
    log_epoch              bigint      NOT NULL,
    -- Counts what other replicas must look at in deferred_invocations (a retry or redrive by a caller).
    deferred_version       bigint      NOT NULL DEFAULT 0,
    -- Commit time of the last event; never decreases along the log.
    committed_at           timestamptz NOT NULL,
    last_subscription_no   integer     NOT NULL DEFAULT 0,
    -- First position that retention has left.
    earliest_position      bigint      NOT NULL DEFAULT 1,
    changed_at             timestamptz NOT NULL
) WITH (fillfactor = 20);

CREATE TABLE apps (
    tenant_id    uuid        NOT NULL,
    app_id       uuid        NOT NULL,
    slug         text        NOT NULL CONSTRAINT apps_slug_shape CHECK (slug ~ '^[a-z][a-z0-9-]{0,62}$'),
    display_name text        NOT NULL,
    created_at   timestamptz NOT NULL,
    CONSTRAINT apps_pk PRIMARY KEY (tenant_id, app_id),
    CONSTRAINT apps_slug_unique UNIQUE (tenant_id, slug)
);

-- Custom event types; system types come from the catalogue files.
CREATE TABLE event_types (
    tenant_id        uuid        NOT NULL,
    name             text        NOT NULL CONSTRAINT event_types_name_shape CHECK (name ~ '^CUSTOM_[A-Za-z0-9_.-]{1,121}$'),
    phase            smallint    NOT NULL CONSTRAINT event_types_phase_known CHECK (phase IN (1, 2)),
    display_name     text        NOT NULL CONSTRAINT event_types_display_name_length CHECK (char_length(display_name) <= 128),
    description      text        NOT NULL CONSTRAINT event_types_description_length CHECK (char_length(description) <= 4096),
    latest_schema    integer     NOT NULL DEFAULT 0,
    registry_version bigint      NOT NULL,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    deleted_at       timestamptz,
    CONSTRAINT event_types_pk PRIMARY KEY (tenant_id, name)
);
CREATE INDEX event_types_by_registry_version ON event_types (tenant_id, registry_version);

CREATE TABLE event_type_schemas (
    tenant_id  uuid        NOT NULL,
    event_type text        NOT NULL,
    version    integer     NOT NULL CONSTRAINT event_type_schemas_version_positive CHECK (version > 0),
    document   text        NOT NULL CONSTRAINT event_type_schemas_document_length CHECK (octet_length(document) <= 262144),
    created_at timestamptz NOT NULL,
    CONSTRAINT event_type_schemas_pk PRIMARY KEY (tenant_id, event_type, version)
);

CREATE TABLE subscriptions (
    tenant_id          uuid        NOT NULL,
    subscription_id    uuid        NOT NULL,
    -- Small number, unique in the tenant, never reused: what event rows list.
    subscription_no    integer     NOT NULL,
    app_id             uuid        NOT NULL,
    event_type         text        NOT NULL,
    display_name       text        NOT NULL CONSTRAINT subscriptions_display_name_length CHECK (char_length(display_name) <= 128),
    filter             text        NOT NULL CONSTRAINT subscriptions_filter_length CHECK (octet_length(filter) <= 4096),
    -- 1 webhook
    target_kind        smallint    NOT NULL CONSTRAINT subscriptions_target_kind_known CHECK (target_kind IN (1)),
    -- SHA-256 over what makes the target unique (a webhook's normalised URI).
    target_key         bytea       NOT NULL,
    webhook_uri        text,
    webhook_mode       smallint,
    webhook_headers    jsonb,
    max_attempts       integer     NOT NULL CONSTRAINT subscriptions_max_attempts_range CHECK (max_attempts BETWEEN 1 AND 50),
    initial_backoff_ms bigint      NOT NULL CONSTRAINT subscriptions_initial_backoff_range CHECK (initial_backoff_ms BETWEEN 1 AND 3600000),
    max_backoff_ms     bigint      NOT NULL CONSTRAINT subscriptions_max_backoff_range CHECK (max_backoff_ms BETWEEN 1 AND 86400000),
    timeout_ms         bigint      NOT NULL CONSTRAINT subscriptions_timeout_range CHECK (timeout_ms BETWEEN 10 AND 300000),
    max_in_flight      integer     NOT NULL CONSTRAINT subscriptions_max_in_flight_range CHECK (max_in_flight BETWEEN 1 AND 1000),
    -- 1 ACTIVE, 2 DISABLED, 3 DELETED
    state              smallint    NOT NULL CONSTRAINT subscriptions_state_known CHECK (state IN (1, 2, 3)),
    state_reason       text        NOT NULL DEFAULT '',
    effective_position bigint      NOT NULL,
    registry_version   bigint      NOT NULL,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    deleted_at         timestamptz,
    CONSTRAINT subscriptions_pk PRIMARY KEY (tenant_id, subscription_id),
    CONSTRAINT subscriptions_no_unique UNIQUE (tenant_id, subscription_no)
);
-- One live subscription per (app, event type, target).
CREATE UNIQUE INDEX subscriptions_target_unique
    ON subscriptions (tenant_id, app_id, event_type, target_kind, target_key) WHERE state <> 3;
CREATE INDEX subscriptions_by_registry_version ON subscriptions (tenant_id, registry_version);
CREATE INDEX subscriptions_by_event_type ON subscriptions (tenant_id, event_type, subscription_no);

-- Signing secrets, encrypted with the key `key_id` of the server's configuration.
CREATE TABLE webhook_secrets (
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    secret_id       uuid        NOT NULL,
    key_id          text        NOT NULL,
    ciphertext      bytea       NOT NULL,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz,
    CONSTRAINT webhook_secrets_pk PRIMARY KEY (tenant_id, subscription_id, secret_id)
);

-- First answers of mutations that carried a request id.
CREATE TABLE request_ids (
    tenant_id    uuid        NOT NULL,
    request_id   text        NOT NULL,
    method       text        NOT NULL,
    request_hash bytea       NOT NULL,
    response     bytea       NOT NULL,
    expires_at   timestamptz NOT NULL,
    CONSTRAINT request_ids_pk PRIMARY KEY (tenant_id, method, request_id)
);
CREATE INDEX request_ids_by_expiry ON request_ids (tenant_id, expires_at);

CREATE TABLE audit_records (
    tenant_id uuid        NOT NULL,
    audit_id  uuid        NOT NULL,
    at        timestamptz NOT NULL,
    actor     text        NOT NULL,
    action    text        NOT NULL,
    resource  text        NOT NULL,
    CONSTRAINT audit_records_pk PRIMARY KEY (tenant_id, audit_id)
);

-- ---------------------------------------------------------------- tenant: log

-- An event and everything it fires are one row: matched lists the subscription numbers, decided under the head row's lock;
-- refused lists those that would have fired had they not been in the event's own lineage. Immutable.
-- day is the UTC date of committed_at, so it never decreases along a tenant's log and a page touches one partition.
CREATE TABLE events (
    tenant_id      uuid        NOT NULL,
    day            date        NOT NULL,
    position       bigint      NOT NULL,
    event_id       uuid        NOT NULL,
    committed_at   timestamptz NOT NULL,
    event_type     text        NOT NULL,
    schema_version integer     NOT NULL,
    source         text        NOT NULL,
    subject        text,
    event_time     timestamptz NOT NULL,
    content_type   text,
    -- Further CloudEvents attributes as JSON, written and read by store/events.rs; empty for none.
    extensions     bytea       NOT NULL,
    -- 0 none, 1 binary, 2 text, 3 protobuf
    data_kind      smallint    NOT NULL,
    data           bytea       NOT NULL,
    matched        integer[]   NOT NULL,
    refused        integer[]   NOT NULL,
    root_id        uuid        NOT NULL,
    -- The invocation that caused it: (event id, subscription number); null for a root.
    cause_event_id uuid,
    cause_subscription_no integer,
    depth          integer     NOT NULL,
    lineage        integer[]   NOT NULL,
    CONSTRAINT events_pk PRIMARY KEY (tenant_id, day, position)
) PARTITION BY RANGE (day);
CREATE INDEX events_by_id ON events (tenant_id, event_id);

CREATE TABLE idempotency_keys (
    tenant_id    uuid        NOT NULL,
    key          text        NOT NULL CONSTRAINT idempotency_keys_key_length CHECK (octet_length(key) BETWEEN 1 AND 1024),
    request_hash bytea       NOT NULL,
    event_id     uuid        NOT NULL,
    expires_at   timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pk PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);

-- ---------------------------------------------------------------- tenant: dispatch

-- Everything up to `position` is finished or deferred. `token` is the shard token of the owner that may write.
CREATE TABLE dispatch_cursors (
    tenant_id uuid    NOT NULL CONSTRAINT dispatch_cursors_pk PRIMARY KEY,
    shard     integer NOT NULL,
    token     bigint  NOT NULL DEFAULT 0,
    position  bigint  NOT NULL DEFAULT 0,
    day       date    NOT NULL
) WITH (fillfactor = 20);
CREATE INDEX dispatch_cursors_by_shard ON dispatch_cursors (shard);

-- Final invocations: appended once, never changed. day and position are the event's.
CREATE TABLE outcomes (
    tenant_id       uuid        NOT NULL,
    day             date        NOT NULL,
    position        bigint      NOT NULL,
    subscription_no integer     NOT NULL,
    -- 3 SUCCEEDED, 5 CANCELLED
    state           smallint    NOT NULL CONSTRAINT outcomes_state_known CHECK (state IN (3, 5)),
    attempt         integer     NOT NULL,
    outcome_class   smallint    NOT NULL,
    status_code     smallint    NOT NULL,
    duration_us     integer     NOT NULL,
    started_at      timestamptz NOT NULL,
    excerpt         text,
    reason          text,
    CONSTRAINT outcomes_pk PRIMARY KEY (tenant_id, day, position, subscription_no)
) PARTITION BY RANGE (day);
CREATE INDEX outcomes_by_subscription ON outcomes (tenant_id, subscription_no, day, position);

-- Attempts that did not end their invocation well. day and position are the event's.
CREATE TABLE attempts (
    tenant_id       uuid        NOT NULL,
    day             date        NOT NULL,
    position        bigint      NOT NULL,
    subscription_no integer     NOT NULL,
    attempt         integer     NOT NULL,
    outcome_class   smallint    NOT NULL,
    status_code     smallint    NOT NULL,
    duration_us     integer     NOT NULL,
    started_at      timestamptz NOT NULL,
    excerpt         text,
    error           text,
    CONSTRAINT attempts_pk PRIMARY KEY (tenant_id, day, position, subscription_no, attempt)
) PARTITION BY RANGE (day);

-- The exceptions: work that does not hold the cursor, because it waits for a retry, for room, or for a caller's redrive.
-- Only these pay for updates.
CREATE TABLE deferred_invocations (
    tenant_id       uuid        NOT NULL,
    position        bigint      NOT NULL,
    subscription_no integer     NOT NULL,
    day             date        NOT NULL,
    shard           integer     NOT NULL,
    attempt         integer     NOT NULL,
    -- Attempts made before the present set began (a redrive gives a fresh set).
    attempt_base    integer     NOT NULL DEFAULT 0,
    due_at          timestamptz NOT NULL,
    CONSTRAINT deferred_invocations_pk PRIMARY KEY (tenant_id, position, subscription_no)
);
CREATE INDEX deferred_invocations_by_subscription ON deferred_invocations (tenant_id, subscription_no, due_at, position);

-- Invocations that used up their attempts; kept until retention, redriven by deleting the row and deferring it again.
CREATE TABLE dead_letters (
    tenant_id       uuid        NOT NULL,
    position        bigint      NOT NULL,
    subscription_no integer     NOT NULL,
    day             date        NOT NULL,
    attempt         integer     NOT NULL,
    dead_at         timestamptz NOT NULL,
    -- Null until the operator event has been published.
    announced_at    timestamptz,
    CONSTRAINT dead_letters_pk PRIMARY KEY (tenant_id, position, subscription_no)
);
CREATE INDEX dead_letters_by_subscription ON dead_letters (tenant_id, subscription_no, position);
CREATE INDEX dead_letters_unannounced ON dead_letters (tenant_id, position) WHERE announced_at IS NULL;
