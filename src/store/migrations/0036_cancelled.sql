-- Lists of cancelled invocations: few among many successes. Lists write the state out, so that any plan may use it.
CREATE INDEX outcomes_cancelled ON outcomes (tenant_id, day, position, subscription_no) WHERE state = 5;
