-- The registry version of the subscription that the last attempt was made for: a receiver that was gone then says nothing of one that the
-- subscription has been given since.
ALTER TABLE dead_letters ADD COLUMN registry_version bigint;
ALTER TABLE removed_dead_letters ADD COLUMN registry_version bigint;
