-- What operators have set of tenants' quotas, and who has too much waiting. Both are read with the tenant's registry, so each change
-- raises its version.

CREATE TABLE tenant_quotas (
    tenant_id uuid   NOT NULL,
    -- As in the API; unknown names are those of a later release.
    name      text   NOT NULL,
    value     bigint NOT NULL CONSTRAINT tenant_quotas_value_positive CHECK (value > 0),
    CONSTRAINT tenant_quotas_pk PRIMARY KEY (tenant_id, name)
);

-- A row while the tenant's owner counts more invocations that are not finished than the quota allows.
CREATE TABLE full_backlogs (
    tenant_id uuid        NOT NULL CONSTRAINT full_backlogs_pk PRIMARY KEY,
    since     timestamptz NOT NULL
);
