-- Installed by the harness into an episode's database: an audit of each transaction, independent
-- of the product. Numbers are assigned under the row's lock, so those of one partition are in
-- commit order; a rollback leaves no trace.
CREATE SCHEMA faults;

CREATE TABLE faults.move (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction text NOT NULL DEFAULT pg_current_xact_id()::text,
    backend     integer NOT NULL DEFAULT pg_backend_pid(),
    partition   integer NOT NULL,
    before      bigint,
    after       bigint
);

CREATE TABLE faults.growth (
    transaction text NOT NULL DEFAULT pg_current_xact_id()::text,
    amount      bigint NOT NULL
);

CREATE TABLE faults.touched (
    transaction text NOT NULL DEFAULT pg_current_xact_id()::text,
    relation    text NOT NULL
);

CREATE FUNCTION faults.note_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO faults.move (partition, before, after) VALUES (
        CASE WHEN TG_OP = 'DELETE' THEN OLD.partition ELSE NEW.partition END,
        CASE WHEN TG_OP = 'INSERT' THEN NULL ELSE OLD.next_offset END,
        CASE WHEN TG_OP = 'DELETE' THEN NULL ELSE NEW.next_offset END
    );
    RETURN NULL;
END
$$;

CREATE FUNCTION faults.note_growth() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO faults.growth (amount) VALUES (
        CASE WHEN TG_OP = 'DELETE' THEN -OLD.count
             WHEN TG_OP = 'INSERT' THEN NEW.count
             ELSE NEW.count - OLD.count END
    );
    RETURN NULL;
END
$$;

CREATE FUNCTION faults.note_touch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO faults.touched (relation) VALUES (TG_TABLE_NAME);
    RETURN NULL;
END
$$;

CREATE TRIGGER faults_move AFTER INSERT OR DELETE ON execution_events.partition_progress
    FOR EACH ROW EXECUTE FUNCTION faults.note_move();
CREATE TRIGGER faults_move_on AFTER UPDATE ON execution_events.partition_progress
    FOR EACH ROW WHEN (OLD.next_offset IS DISTINCT FROM NEW.next_offset)
    EXECUTE FUNCTION faults.note_move();
CREATE TRIGGER faults_growth AFTER INSERT OR UPDATE OR DELETE ON execution_events.event
    FOR EACH ROW EXECUTE FUNCTION faults.note_growth();
CREATE TRIGGER faults_touch_letter AFTER INSERT OR UPDATE OR DELETE ON execution_events.dead_letter
    FOR EACH ROW EXECUTE FUNCTION faults.note_touch();
CREATE TRIGGER faults_touch_source
    AFTER INSERT OR UPDATE OR DELETE ON execution_events.producer_progress
    FOR EACH ROW EXECUTE FUNCTION faults.note_touch();
