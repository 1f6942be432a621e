"""Quix Streams: an application with its PostgreSQL sink.

    python -m tests.benchmarks.peers.quixstreams_peer

The sink writes each checkpoint in one transaction a partition before its offsets are committed: at
least once. Its upsert replaces rows.
"""

import tempfile
from urllib.parse import unquote, urlsplit

from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink

from tests.benchmarks.peers.job import KEY, TABLE, Job, row

_COMMIT_INTERVAL = 1.0
"""Seconds until an incomplete batch is written."""


def main(job: Job) -> None:
    """Store checkpoints until SIGTERM."""
    url = urlsplit(job.database_url)
    sink = PostgreSQLSink(
        host=url.hostname or "",
        port=url.port or 5432,
        dbname=url.path.removeprefix("/"),
        user=unquote(url.username or ""),
        password=unquote(url.password or ""),
        table_name=TABLE,
        schema_auto_update=False,
        primary_key_columns=list(KEY),
        upsert_on_primary_key=True,
        include_metadata=False,
    )
    # Quix Streams creates state directories even without state.
    with tempfile.TemporaryDirectory() as state:
        application = Application(
            broker_address=job.servers,
            consumer_group=job.group,
            auto_offset_reset="earliest",
            auto_create_topics=False,
            use_changelog_topics=False,
            commit_every=job.batch,
            commit_interval=_COMMIT_INTERVAL,
            loglevel="WARNING",
            state_dir=state,
        )
        topic = application.topic(job.topic, value_deserializer="json")
        application.dataframe(topic).apply(row).sink(sink)
        application.run()


if __name__ == "__main__":
    main(Job.load())
