-- What the log of each partition was when it was last applied, so that another log in its place is
-- noticed: Kafka's protocol tells consumers no topic id.

ALTER TABLE partition_progress
    ADD COLUMN cluster_id     text COLLATE "C",
    ADD COLUMN last_offset    bigint,
    ADD COLUMN last_timestamp bigint,
    ADD COLUMN last_hash      bytea;
