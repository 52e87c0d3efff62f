-- The attempts of a listener before its last one, JSON: a next owner of the event commits them with the rest. Null where there were none.
ALTER TABLE pending_verdicts ADD COLUMN failed text;
