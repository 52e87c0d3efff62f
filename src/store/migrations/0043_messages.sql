-- What a listener of a PRE event said of it before it was committed, empty where it agreed: a retry of the publish gets the first answer. Null
-- where the event's listeners were called after that.
ALTER TABLE outcomes ADD COLUMN message text;
