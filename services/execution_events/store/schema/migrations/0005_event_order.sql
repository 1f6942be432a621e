-- The order of lists, so that a page costs the same at any depth. `place` never changes, so that
-- updates of events that recur stay heap-only.

CREATE INDEX event_order ON event (execution_id, place, name, namespace);
