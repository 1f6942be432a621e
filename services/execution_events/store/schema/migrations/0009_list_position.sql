-- The first timestamp of an event's first record, which fixes its position in lists.

ALTER TABLE event RENAME COLUMN place TO list_position;
ALTER TABLE event RENAME CONSTRAINT event_place_check TO event_list_position_check;
