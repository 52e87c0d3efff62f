-- What an announcement follows from, as of `events`: the subscriptions on the way there do not hear of it. Null where nothing led to it.
ALTER TABLE announcements
    ADD COLUMN root_id               uuid,
    ADD COLUMN cause_event_id        uuid,
    ADD COLUMN cause_subscription_no integer,
    ADD COLUMN depth                 integer,
    ADD COLUMN lineage               integer[];
