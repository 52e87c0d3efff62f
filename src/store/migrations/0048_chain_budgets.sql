-- How many invocations the events that followed from one event have fired, or would have: what counts against the budget of the chain. A row
-- for each root of which something that followed has fired; `day` is that of the last such event.
CREATE TABLE chain_budgets (
    tenant_id uuid    NOT NULL,
    root_id   uuid    NOT NULL,
    day       date    NOT NULL,
    spent     bigint  NOT NULL,
    -- Whether the chain's operators were told that its budget is used up.
    told      boolean NOT NULL DEFAULT false,
    CONSTRAINT chain_budgets_pk PRIMARY KEY (tenant_id, root_id)
);
-- What the log no longer holds an event of is swept.
CREATE INDEX chain_budgets_by_day ON chain_budgets (day);

CALL raise_tenant_wall();
