-- The log that a stored offset belongs to: accepting another log begins a new epoch, so that an
-- offset of the old one, which may have the same number, is never taken for one of the new.

ALTER TABLE partition_progress ADD COLUMN epoch bigint NOT NULL DEFAULT 0;
